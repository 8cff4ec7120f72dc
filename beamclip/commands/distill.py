"""Distil a CLIP teacher into a small student, from images alone."""

import time

from beamclip.commands.distill_data import load_data
from beamclip.commands.options import DistillConfig
from beamclip.commands.sources import places_of
from beamclip.runs.folder import new_run_dir
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
    if config.dry_run:
        from beamclip.commands.distillation import plan_distillation

        return plan_distillation(config, load_data(config))
    began = time.perf_counter()
    run_dir = new_run_dir(config.out, "distill")
    with waiting_workers(config.workers) as workers:
        data = load_data(config)
        if workers is not None:
            workers.start_ray(places_of(config, data.shards, run_dir))
        # Takes seconds, in which Ray starts and another process imports the same modules for the workers.
        from beamclip.commands.distillation import run_distillation

        return run_distillation(config, data, run_dir, workers, began=began)
