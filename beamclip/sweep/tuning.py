"""Run the trials of a sweep with Ray Tune: choose the next one, stop bad ones early, tell a listener."""

import contextlib
import logging
import math
import os
import pickle
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray.tune
from ray.air.execution import FixedResourceManager
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.execution import tune_controller
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.search import SearchConfig
from beamclip.data.shard_file import UnansweredShardError
from beamclip.errors import InputError
from beamclip.sweep.run_trial import NO_SCORE, Report
from beamclip.sweep.space import Range, Settings, Space, Values
from beamclip.sweep.trial import METRIC, Trial
from beamclip.training.process import CPU_WORKER_ENVIRONMENT
from beamclip.training.worker import in_one_line

REDUCTION = 2
"""Factor between ASHA's rungs: half of the trials pass a rung; the next is at twice the number of scores."""
ASKED_AGAIN = 50
"""Number of times that Optuna is asked for settings not tried yet; the last answer is taken in any case."""
_ADVICE = ". Most often memory ran out; lower --max-concurrent or --batch-size"
CPUS_BESIDE_WORKERS = 0.1
"""CPUs reserved for the process that watches the workers of a trial with several."""
_NO_LIMIT = {"CPU": math.inf, "GPU": math.inf}
"""What Tune may give to trials: their number is limited, and Ray starts a process once it has room for it."""

_ENVIRONMENT = {
    # With 1, Tune prints a good deal even at verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # We handle Ctrl-C.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Before a process runs the next trial, the training of the one that was stopped has to end. If that takes
    # longer than this, Tune silently drops the next trial and never frees its slot: wait as long as it takes.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "1000000",
    # TrialQueue restarts lost trials: after a restart by Tune, a trial would not know of its earlier scores.
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    # Nobody asks for the error of a trial that fails while the sweep ends, and Ray would print its traceback.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class _Begun:
    """A trial as its process receives it; see run_trial."""

    number: int
    settings: Settings
    step: int
    """Step of the last score received."""


class Listener(Protocol):
    """Receives what happens to the trials, in the thread that called `run_trials`."""

    def started(self, number: int, settings: Settings) -> None:
        """A trial starts, or restarts after its process was lost."""

    def reported(self, number: int, report: Report) -> None:
        """A trial was scored, or its training failed."""

    def lost(self, number: int, cause: str) -> None:
        """A trial lost its process or raised an error, and will restart; `cause` says which."""

    def ended(self, number: int, problem: str | None) -> None:
        """A trial finished, was stopped early, or failed; `problem` is set if it may not restart again."""


class OptunaSampler:
    """Chooses settings with Optuna, from the scores of all earlier trials."""

    def __init__(self, space: Space, seed: int, known: Iterable[Trial]) -> None:
        """Start a study from the known trials.

        Raises:
            InputError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise InputError(
                "--optuna: Optuna is not installed. In the checkout: pip install '.[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._space = space
        self._distributions = {name: self._distribution(choice) for name, choice in space.items()}
        known = list(known)
        # Another seed at each start: with the same seed, Optuna would repeat earlier draws.
        sampler = optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, Any] = {}
        self._tried = [trial.settings for trial in known]
        for trial in known:
            if trial.score is not None:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=self._numbers(trial.settings),
                        distributions=self._distributions,
                        value=trial.score,
                    )
                )

    def ask(self, number: int) -> Settings:
        """Return settings for a trial; not tried before, if ASKED_AGAIN attempts yield any."""
        for left in reversed(range(ASKED_AGAIN)):
            asked = self._study.ask(self._distributions)
            settings = {
                name: choice.values[asked.params[name]] if isinstance(choice, Values) else asked.params[name]
                for name, choice in self._space.items()
            }
            if settings not in self._tried or not left:
                break
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        self._asked[number] = asked
        self._tried.append(settings)
        return settings

    def tell(self, number: int, score: float | None) -> None:
        """Tell Optuna the score of a trial; None if it has none."""
        if number in self._asked:
            failed = self._optuna.trial.TrialState.FAIL if score is None else None
            self._study.tell(self._asked.pop(number), score, state=failed)

    def _distribution(self, choice: Values | Range) -> Any:
        if isinstance(choice, Range):
            return self._optuna.distributions.FloatDistribution(choice.low, choice.high, log=True)
        # By index: Optuna takes no lists as values, and indices preserve the order of numbers.
        places = len(choice.values)
        ordered = all(isinstance(value, int | float) for value in choice.values)
        if ordered and list(choice.values) == sorted(choice.values):
            return self._optuna.distributions.IntDistribution(0, places - 1)
        return self._optuna.distributions.CategoricalDistribution(range(places))

    def _numbers(self, settings: Settings) -> dict[str, Any]:
        return {
            name: choice.values.index(settings[name]) if isinstance(choice, Values) else settings[name]
            for name, choice in self._space.items()
        }


class TrialQueue(Searcher):
    """Trials in the order in which they run: first the listed ones, then those that an advisor chooses.

    A trial that lost its process returns to the head of the list. Tune's own restarts are not used: when a
    process dies idle between two trials, Tune handles the loss twice and fails the trial that was to use it.
    """

    def __init__(
        self,
        listed: Iterable[Trial],
        advisor: OptunaSampler | None,
        numbers: Iterable[int],
        max_failures: int = 0,
    ) -> None:
        """Queue the listed trials.

        Args:
            numbers: to be given to the trials that the advisor chooses.
            max_failures: how often a trial may lose its process and restart; no limit if below 0.
        """
        super().__init__(metric=METRIC, mode="max")
        self._listed = deque(_Begun(trial.number, trial.settings, trial.step) for trial in listed)
        self._advisor = advisor
        self._numbers = deque(numbers)
        self.max_failures = max_failures
        self._running: dict[str, _Begun] = {}
        self._losses: Counter[tuple[int, bool]] = Counter()

    def __len__(self) -> int:
        return len(self._listed) + len(self._numbers)

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial as a dictionary; None to be asked again later, FINISHED at the end."""
        if self._listed:
            begun = self._listed.popleft()
        elif self._advisor is not None and self._numbers:
            number = self._numbers.popleft()
            begun = _Begun(number, self._advisor.ask(number), 0)
        else:
            # A running trial may lose its process and return to the list.
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = begun
        return asdict(begun)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember the step from which the trial would resume."""
        self._running[trial_id] = replace(self._running[trial_id], step=result["step"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the advisor the score. `comes_back` decides about a trial that ended in an error."""
        if not error:
            score = None if result is None else result.get(METRIC)
            self._end(trial_id, None if score == NO_SCORE else score)

    def comes_back(self, trial_id: str, *, had_started: bool, counts: bool) -> bool:
        """Return whether a trial that ended in an error restarts; if so, put it at the head of the list.

        Args:
            had_started: False if its process died before the trial began. The first such loss does not count:
                the process may have died idle. A trial whose processes keep dying at the start fails.
            counts: whether max_failures limits this kind of loss.
        """
        begun = self._running[trial_id]
        self._losses[begun.number, had_started] += counts
        allowed = self.max_failures + (not had_started)
        if self.max_failures >= 0 and self._losses[begun.number, had_started] > allowed:
            self._end(trial_id, None)
            return False
        self._listed.appendleft(self._running.pop(trial_id))
        return True

    def _end(self, trial_id: str, score: float | None) -> None:
        begun = self._running.pop(trial_id)
        if self._advisor is not None:
            self._advisor.tell(begun.number, score)

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles its searcher only to restore it, which never happens here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: trials are recorded in files of their own."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; see `save`."""


class ListenerCallback(ray.tune.Callback):
    """Passes Tune's callbacks on to a Listener."""

    def __init__(self, listener: Listener, suggestions: TrialQueue) -> None:
        self.listener = listener
        self.suggestions = suggestions
        self.started: set[str] = set()
        self.unread: str | None = None
        """Problem of a trial that could not read its data, however often it restarted."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial starts or restarts."""
        self.started.add(trial.trial_id)
        self.listener.started(trial.config["number"], trial.config["settings"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on the report of a trial."""
        self.listener.reported(trial.config["number"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial finished or was stopped early."""
        self.listener.ended(trial.config["number"], None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Have the queue decide whether a trial restarts after an error, and pass that on."""
        error, number = _error_of(trial), trial.config["number"]
        had_started = trial.trial_id in self.started
        counts = not getattr(error, "preempted", False)
        if not self.suggestions.comes_back(trial.trial_id, had_started=had_started, counts=counts):
            allowed = f"and --max-failures {self.suggestions.max_failures} allows no more restarts"
            problem = f"{_cause(error)}, {allowed}{_ADVICE if _is_loss(error) else ''}"
            if isinstance(error, UnansweredShardError):
                self.unread = problem
            self.listener.ended(number, problem)
        elif had_started:
            self.listener.lost(number, _cause(error))


class _StopWhen(ray.tune.Stopper):
    """Ends all trials when a condition holds."""

    def __init__(self, holds: Callable[[], bool]) -> None:
        self._holds = holds

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._holds()


def tune_environment(workers: WorkersConfig) -> dict[str, str]:
    """Return the environment for the trials' processes, and set Tune's variables in this process too."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return _ENVIRONMENT if workers.use_gpu else {**_ENVIRONMENT, **CPU_WORKER_ENVIRONMENT}


def resources(workers: WorkersConfig) -> dict[str, float]:
    """Return what Tune reserves for the process of a trial.

    A single worker runs in that process; several reserve their own resources.
    """
    return workers.resources if workers.num_workers == 1 else {"CPU": CPUS_BESIDE_WORKERS}


def run_trials(
    body: Callable[[dict[str, Any]], None],
    workers: WorkersConfig,
    suggestions: TrialQueue,
    search: SearchConfig,
    concurrent: int,
    listener: Listener,
    interrupted: threading.Event,
) -> str | None:
    """Run all trials, `concurrent` at a time, until the last one has ended or `interrupted` is set.

    A trial that loses its process or raises an error restarts, as often as `suggestions` allows. A trial
    whose training fails reports that and does not restart. Neither ends the other trials, unless the error
    is that its data cannot be read: all trials read the same data.

    Args:
        body: runs a trial in its process; see run_trial. Its argument is what `suggestions` suggests.

    Returns:
        The problem of the trial that could not read its data, which ended the others; None without one.
    """
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ladder = ASHAScheduler("scored", max_t=search.scores, reduction_factor=REDUCTION, stop_last_trials=False)
    callback = ListenerCallback(listener, suggestions)
    with (
        tempfile.TemporaryDirectory(prefix="beamclip-tune-", ignore_cleanup_errors=True) as scratch,
        _without_placement_groups(),
    ):
        ray.tune.Tuner(
            ray.tune.with_resources(body, resources(workers)),
            tune_config=ray.tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=suggestions,
                scheduler=ladder if search.asha and search.scores > 1 else FIFOScheduler(),
                # As many trials as the queue suggests, restarted ones included.
                num_samples=-1,
                max_concurrent_trials=concurrent,
                # The imports of a new process take longer than many trials do.
                reuse_actors=True,
                trial_dirname_creator=_name,
                trial_name_creator=_name,
            ),
            run_config=ray.tune.RunConfig(
                # Nothing that Tune keeps here is read by a later start.
                name="sweep",
                storage_path=scratch,
                verbose=0,
                stop=_StopWhen(lambda: interrupted.is_set() or callback.unread is not None),
                callbacks=[callback],
                failure_config=ray.tune.FailureConfig(max_failures=0),
            ),
        ).fit()
    return callback.unread


@contextlib.contextmanager
def _without_placement_groups() -> Iterator[None]:
    """Have Tune, inside, reserve the resources of a trial by its process alone.

    For each process Tune would make a placement group, and remove it again if another process becomes free
    first. Ray never returns the resources of a group that is removed between the two phases of its creation
    (CommitAllBundles of its GCS returns committed bundles, of which there are none yet): after a few such
    losses, no CPU would be left to read with. Tune has no option for it.
    """
    module: Any = tune_controller
    own = module.PlacementGroupResourceManager
    module.PlacementGroupResourceManager = partial(FixedResourceManager, _NO_LIMIT)
    try:
        yield
    finally:
        module.PlacementGroupResourceManager = own


def _error_of(trial: Any) -> BaseException | None:
    """Return the error by which a trial ended; None if it cannot be read."""
    # Tune's get_error would look where the file is copied only later.
    with contextlib.suppress(Exception):
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
        return error.as_instanceof_cause() if isinstance(error, RayTaskError) else error
    return None


def _is_loss(error: BaseException | None) -> bool:
    return error is None or isinstance(error, RayActorError)


def _cause(error: BaseException | None) -> str:
    """Return what was wrong, in one line without a full stop."""
    return "its process was lost" if error is None or _is_loss(error) else in_one_line(error).rstrip(".")


def _name(trial: Any) -> str:
    return f"{trial.config['number']:03d}"
