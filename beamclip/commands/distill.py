"""Distil a CLIP teacher into a small student, from images alone."""

import time

from beamclip.commands.options import DistillConfig
from beamclip.summary import Summary
from beamclip.training.waiting import waiting_workers


def distill(config: DistillConfig) -> Summary:
    """Run a distillation and write its run folder.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        TrainingError: training could not be finished.
        UnscoredError: training succeeded, but a later step such as scoring failed.
        KeyboardInterrupt: the run was interrupted; its message says how to go on.
    """
    began = time.perf_counter()
    with waiting_workers(config.workers) as workers:
        # Takes seconds, during which another process imports the same modules for the workers.
        from beamclip.commands.distillation import run_distillation

        return run_distillation(config, workers, began=began)
