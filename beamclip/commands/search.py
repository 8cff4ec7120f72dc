"""The options that decide what a sweep tries."""

from dataclasses import dataclass

from beamclip.errors import InputError
from beamclip.ranges import Count, check_ranges

DEFAULT_TRIALS = 16


@dataclass(frozen=True)
class SearchConfig:
    """What a sweep tries, and how widely."""

    vary: tuple[str, ...] = ()
    """Options of a distillation and what to try: OPTION=VALUE,VALUE or, evenly on a logarithmic scale,
    OPTION=LOW..HIGH. By default tau_teacher and tau_student, and with a --context-source also num_contexts
    and anchor_reduce."""
    trials: Count | None = None
    """Number of trials, by default 16: distinct combinations, drawn at random."""
    grid: bool = False
    """Try every combination instead."""
    optuna: bool = False
    """Let Optuna choose each trial by the scores so far instead (after pip install '.[optuna]' in the
    checkout)."""
    asha: bool = True
    """Stop a trial whose score is not among the better half of those so far at the same share of the steps
    (ASHA, arXiv 1810.05934). It also stops options that start slowly and would win in the end."""
    scores: Count = 4
    """Evaluations per trial on the held-out images, evenly spaced, the last one at its end."""
    scored_images: Count = 10_000
    """Held-out images behind each score, taken at even distances and decoded once."""
    max_concurrent: Count | None = None
    """Trials at a time; by default as many as the CPUs or GPUs allow."""
    augmentations: Count = 4
    """Views of each image in the teacher cache that is built if --data are plain shards."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.grid and self.optuna:
            raise InputError("--grid tries every combination, --optuna chooses: give one of them.")
        if self.grid and self.trials:
            raise InputError(
                f"--grid tries every combination, --trials {self.trials} only some. Leave one of them out."
            )
