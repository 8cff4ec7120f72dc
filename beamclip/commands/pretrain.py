"""Train an image and a text tower from captioned images: a teacher, if none is at hand."""

import time

from beamclip.commands.options import PretrainConfig
from beamclip.summary import Summary
from beamclip.training.waiting import waiting_workers


def pretrain(config: PretrainConfig) -> Summary:
    """Run a pre-training and leave its run directory.

    Raises:
        InputError: something that was given cannot be used.
        TrainingError: the run could not be finished.
    """
    began = time.perf_counter()
    with waiting_workers(config.workers) as workers:
        # Imported beside the process that imports the same for the workers: it takes seconds.
        from beamclip.commands.pretraining import run_pretraining

        return run_pretraining(config, workers, began=began)
