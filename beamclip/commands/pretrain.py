"""Train an image and a text tower from captioned images, as a teacher if there is none."""

import time
from dataclasses import replace

from beamclip.commands.options import PretrainConfig
from beamclip.commands.pretrain_data import load_data
from beamclip.commands.sources import places_of
from beamclip.runs.folder import new_run_dir
from beamclip.summary import Summary
from beamclip.training.waiting import waiting_workers

DEFAULT_MODEL = "tiny-resnet18"


def pretrain(config: PretrainConfig) -> Summary:
    """Run a pre-training and write its run folder.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        TrainingError: training could not be finished.
        UnscoredError: training succeeded, but a later step such as scoring failed.
        KeyboardInterrupt: the run was interrupted; its message says how to go on.
    """
    if config.model is None and config.init is None:
        config = replace(config, model=DEFAULT_MODEL)
    if config.dry_run:
        from beamclip.commands.pretraining import plan_pretraining

        return plan_pretraining(config, load_data(config))
    began = time.perf_counter()
    run_dir = new_run_dir(config.out, "pretrain")
    with waiting_workers(config.workers) as workers:
        data = load_data(config)
        if workers is not None:
            workers.start_ray(places_of(config, data.shards, run_dir))
        # Takes seconds, in which Ray starts and another process imports the same modules for the workers.
        from beamclip.commands.pretraining import run_pretraining

        return run_pretraining(config, data, run_dir, workers, began=began)
