"""Train an image and a text tower from captioned images, as a teacher if there is none."""

import time

from beamclip.commands.options import PretrainConfig
from beamclip.summary import Summary
from beamclip.training.waiting import waiting_workers


def pretrain(config: PretrainConfig) -> Summary:
    """Run a pre-training and write its run folder.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        TrainingError: training could not be finished.
        UnscoredError: training succeeded, but a later step such as scoring failed.
        KeyboardInterrupt: the run was interrupted; its message says how to go on.
    """
    began = time.perf_counter()
    with waiting_workers(config.workers) as workers:
        # Takes seconds, during which another process imports the same modules for the workers.
        from beamclip.commands.pretraining import run_pretraining

        return run_pretraining(config, workers, began=began)
