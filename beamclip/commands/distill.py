"""Distil a CLIP teacher into a small student, from images alone."""

import time

from beamclip.commands.options import DistillConfig
from beamclip.summary import Summary
from beamclip.training.waiting import waiting_workers


def distill(config: DistillConfig) -> Summary:
    """Run a distillation and leave its run directory.

    Raises:
        InputError: something that was given cannot be used.
        TrainingError: the run could not be finished.
    """
    began = time.perf_counter()
    with waiting_workers(config.workers) as workers:
        # Imported beside the process that imports the same for the workers: it takes seconds.
        from beamclip.commands.distillation import run_distillation

        return run_distillation(config, workers, began=began)
