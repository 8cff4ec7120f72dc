"""Ray Train for real: runs left alone, stopped, killed and resumed, and runs that cannot be finished."""

import contextlib
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import ray
import ray.cloudpickle
import ray.train
import torch
import torch.nn.functional as F
from torch import nn

from beamclip.cluster.config import WorkersConfig
from beamclip.data.config import Augmentation, StreamConfig
from beamclip.data.position import from_plain
from beamclip.data.shards import MISSING_SHARD, Columns, Shard
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.models.clip import new_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.checkpoint_store import claim
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.events import Event, Lost, Recorded, Saved
from beamclip.training.launch import TrainingEnd, fit, interrupts
from beamclip.training.questions import Questions
from beamclip.training.ray_train import _cause
from beamclip.training.trace import Seen, read_trace
from beamclip.training.waiting import waiting_workers
from beamclip.training.worker import Storage, TrainingError, TrainingJob

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 12
NODE = ray.util.get_node_ip_address()
ONE, TWO = WorkersConfig(num_workers=1), WorkersConfig(num_workers=2)

Fault = Callable[[nn.Module, int], None]
"""Called before each forward pass with the method and the number of the pass, from 1."""


@dataclass(frozen=True)
class DistillationBuilder:
    """Builds a ViT that learns from another one; each call leaves a line in `started`."""

    config: Path
    started: Path
    fault: Fault | None = None

    def __call__(self, device: torch.device) -> nn.Module:
        with self.started.open("a") as file:
            file.write("started\n")
        embeddings = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
        method = Distillation(
            new_clip(self.config, seed=1).image_tower,
            [Teacher(new_clip(self.config, seed=0)).to(device).encode_image],
            [Anchors(F.normalize(embeddings, dim=1), torch.arange(8))],
            csm=CsmConfig(tau_teacher=0.1, tau_student=0.1),
            feature=FeatureConfig(feature_weight=1.0),
            augmentation=Augmentation(),
        )
        passes = iter(range(1, 1000))
        if self.fault is not None:
            method.register_forward_pre_hook(lambda *_: self.fault(method, next(passes)))
        return method


Listener = Callable[[Event], None]


def records_of(events: list[Event]) -> list[dict[str, float]]:
    return [event.values for event in events if isinstance(event, Recorded)]


def is_step(event: Event, step: int) -> bool:
    """Whether it is the record of a step."""
    return isinstance(event, Recorded) and event.values["step"] == step


@dataclass
class Run:
    """A run, and what came of it."""

    job: TrainingJob
    workers: WorkersConfig = ONE
    events: list[Event] = field(default_factory=list)

    def go(self, on_event: Listener = lambda event: None) -> TrainingEnd:
        def listen(event: Event) -> None:
            self.events.append(event)
            on_event(event)

        with waiting_workers(self.workers) as waiting:
            return fit(self.job, self.workers, listen, waiting)

    @property
    def records(self) -> list[dict[str, float]]:
        return records_of(self.events)

    @property
    def losses(self) -> dict[int, float]:
        return {int(record["step"]): record["loss"] for record in self.records}

    @property
    def folder(self) -> Path:
        return Path(self.job.storage.checkpoints)

    @property
    def checkpoints(self) -> set[str]:
        return {path.name for path in self.folder.glob("step=*")}

    @property
    def starts(self) -> int:
        return len((self.folder.parent / "started").read_text().splitlines())

    @property
    def trace(self) -> dict[int, list[Seen]]:
        """Of the steps that all these runs take."""
        assert self.job.storage.trace is not None
        return {
            step: seen for step, seen in read_trace(Path(self.job.storage.trace)).items() if step <= STEPS
        }

    @property
    def samples(self) -> dict[int, list[tuple[int, str]]]:
        """Epoch and key of each step's samples, whoever served them."""
        return {step: [(each.epoch, each.key) for each in seen] for step, seen in self.trace.items()}

    def copied(self, folder: Path) -> "Run":
        """The same checkpoints elsewhere, and nothing heard of them yet."""
        kept = shutil.copytree(self.folder.parent, folder / "copy")
        storage = Storage(str(kept / "checkpoints"), keep_checkpoints=1, trace=str(kept / "trace"))
        return Run(replace(self.job, storage=storage), self.workers)


NewRun = Callable[..., Run]


@pytest.fixture(scope="module")
def new_run(
    ray_cluster: None, shards: list[Shard], tiny_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> NewRun:
    """Makes runs of one plan, each in a folder of its own."""

    def make(fault: Fault | None = None, workers: WorkersConfig = ONE) -> Run:
        folder = tmp_path_factory.mktemp("runs")
        job = TrainingJob(
            build_method=DistillationBuilder(tiny_config, folder / "started", fault),
            shards=shards,
            columns=Columns(),
            image_size=32,
            batch_size=12,
            total_steps=STEPS,
            seed=0,
            threads=None,
            stream=StreamConfig(shuffle_window=256),
            augmentation=Augmentation(),
            optim=OptimConfig(lr=1e-3, ema_decay=0.9),
            cadence=CadenceConfig(log_every=1, checkpoint_every=4),
            storage=Storage(str(folder / "checkpoints"), keep_checkpoints=1, trace=str(folder / "trace")),
        )
        return Run(job, workers)

    return make


def assert_same_state(got: dict[str, Any], want: dict[str, Any]) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@dataclass(frozen=True)
class Finished:
    """A run and its outcome."""

    run: Run
    outcome: TrainingEnd


@pytest.fixture(scope="module")
def undisturbed(new_run: NewRun) -> Finished:
    run = new_run()
    return Finished(run, run.go())


def test_rank_0_sends_a_record_of_every_step_in_order(undisturbed: Finished) -> None:
    records = undisturbed.run.records
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert all(math.isfinite(record["loss"]) and record["images_per_second"] > 0 for record in records)
    assert {record["pid"] for record in records}.isdisjoint({os.getpid()})
    saved = [event.step for event in undisturbed.run.events if isinstance(event, Saved)]
    assert saved == [4, 8, 12]


@ray.remote(num_cpus=0.1)
def single_process(
    job: TrainingJob, listen: Listener = lambda event: None, workers: WorkersConfig = ONE
) -> tuple[list[Event], dict[str, Any] | str]:
    """A run in the process of this task; its events, and its state or what it failed by."""
    events = list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        listen(event)

    try:
        return events, fit(job, workers, on_event, None).state
    except TrainingError as error:
        return events, str(error)
    except KeyboardInterrupt:
        return events, " ".join(thread.name for thread in threading.enumerate())


def leave_at_step_2(event: Event) -> None:
    if is_step(event, 2):
        raise KeyboardInterrupt


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_in_this_process_equals_one_in_a_worker_of_ray_train(
    new_run: NewRun, undisturbed: Finished, num_workers: int
) -> None:
    """With 0 rows are not read by Ray either."""
    workers = replace(ONE, num_workers=num_workers)
    events, state = ray.get(single_process.remote(new_run().job, workers=workers))
    losses = {int(record["step"]): record["loss"] for record in records_of(events)}
    assert losses == undisturbed.run.losses
    assert_same_state(state, undisturbed.outcome.state)


def test_a_run_whose_images_are_decoded_in_tasks_equals_one_whose_worker_decodes(
    new_run: NewRun, undisturbed: Finished
) -> None:
    run = new_run()
    run.job = replace(run.job, stream=replace(run.job.stream, decode="tasks"))
    outcome = run.go()
    assert run.losses == undisturbed.run.losses
    assert_same_state(outcome.state, undisturbed.outcome.state)


def test_a_run_in_this_process_fails_by_a_line_and_leaves_no_thread_when_left(new_run: NewRun) -> None:
    run = new_run(fault=break_weights)
    run.events, problem = ray.get(single_process.remote(run.job))
    assert re.match(r"step 6: loss nan.*--lr", problem)
    assert max(run.losses) == 5
    assert run.checkpoints == {"step=00000004"}
    state = read_checkpoint(str(run.folder), 4)
    assert all(torch.isfinite(weight).all() for weight in state["method"].values())
    _, threads = ray.get(single_process.remote(new_run().job, leave_at_step_2))
    assert "beamclip-fit" not in threads
    assert "beamclip-prefetch" not in threads


def test_a_missing_shard_ends_a_run_by_a_line_with_its_path_and_the_node(new_run: NewRun) -> None:
    job = new_run().job
    gone = replace(job.shards[1], path="file:///nowhere/00001.tar")
    _, problem = ray.get(single_process.remote(replace(job, shards=[job.shards[0], gone])))
    assert problem.startswith(f"file:///nowhere/00001.tar: cannot be read on node {NODE} (FileNotFoundError")
    kept = replace(job, shards=[job.shards[0], replace(gone, may_be_missing=True)])
    events, state = ray.get(single_process.remote(kept))
    assert from_plain(state["position"]).skipped == {MISSING_SHARD: 20}
    told = [line for event in events if isinstance(event, Lost) for _, line in event.samples]
    assert told[0].startswith("shard 00001.tar: missing shard (FileNotFoundError")


def test_training_through_ray_learns(undisturbed: Finished) -> None:
    losses = undisturbed.run.losses
    assert losses[STEPS] < 0.5 * losses[1]


def test_a_run_ends_with_the_state_of_its_last_step(undisturbed: Finished) -> None:
    state = undisturbed.outcome.state
    assert state["step"] == STEPS
    assert not undisturbed.outcome.interrupted
    assert from_plain(state["position"]).samples == STEPS * 12


def test_a_checkpoint_holds_the_student_its_average_and_no_teacher(
    undisturbed: Finished, tiny_config: Path
) -> None:
    state = undisturbed.outcome.state
    names = {f"visual.{name}" for name in new_clip(tiny_config, seed=1).model.visual.state_dict()}
    assert set(state["method"]) == names
    assert set(state["ema"]) == names
    assert len(state["optimizer"]["state"]) == len(names)


def test_nothing_but_checkpoints_lies_in_their_folder(undisturbed: Finished) -> None:
    others = {path.name for path in undisturbed.run.folder.iterdir()} - undisturbed.run.checkpoints
    assert others == {".checkpoints"}


def waiting(gates: dict[int, Path]) -> Fault:
    """A forward pass of a number waits until its file is there."""

    def wait(method: nn.Module, number: int) -> None:
        while number in gates and not gates[number].exists():
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="module")
def stopped(new_run: NewRun, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run in which Ctrl-C is pressed once the first step is done."""
    folder = tmp_path_factory.mktemp("gates")
    pressed, asked = folder / "pressed", folder / "asked"

    def press(event: Event) -> None:
        if is_step(event, 1):
            os.kill(os.getpid(), signal.SIGINT)
            pressed.touch()
        if is_step(event, 2):
            # It was taken after the first one was heard, and between the two the run was asked to stop.
            asked.touch()

    run = new_run(fault=waiting({2: pressed, 3: asked}))
    return Finished(run, run.go(press))


def test_ctrl_c_ends_a_run_with_a_checkpoint(stopped: Finished) -> None:
    assert stopped.outcome.interrupted
    step = stopped.outcome.state["step"]
    assert 1 <= step < STEPS
    assert f"step={step:08d}" in stopped.run.checkpoints
    assert max(stopped.run.losses) == step


def test_a_run_is_asked_about_once_a_second_wherever_it_begins() -> None:
    own, now, step, asked = Questions(5000), 100.0, 5001, list[int]()
    for seconds in [3.0, *[1 / 64] * 12]:
        steps = own.steps_until_next(step, now)
        asked.append(steps)
        step, now = step + steps, now + steps * seconds
    assert asked == [1, 1, 2, 4, 8, 16, 32, *[64] * 6]
    assert own.steps_until_next(step, now + 500.0) == 1


def test_ctrl_c_is_answered_as_before_once_a_run_has_ended() -> None:
    def answer(signum: int, frame: FrameType | None) -> None: ...

    # Whoever starts the tests in the background may have them ignore Ctrl-C from the start.
    before = signal.signal(signal.SIGINT, answer)
    try:
        with interrupts():
            assert signal.getsignal(signal.SIGINT) is not answer
        assert signal.getsignal(signal.SIGINT) is answer
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_second_ctrl_c_does_not_wait_for_a_checkpoint() -> None:
    with interrupts() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    stopped: Finished, undisturbed: Finished
) -> None:
    storage = stopped.run.job.storage
    resumed = Run(replace(undisturbed.run.job, storage=storage))
    resumed.events, state = ray.get(single_process.remote(resumed.job))
    assert min(resumed.losses) == stopped.outcome.state["step"] + 1
    assert {**stopped.run.losses, **resumed.losses} == undisturbed.run.losses
    assert resumed.trace == undisturbed.run.trace
    assert_same_state(state, undisturbed.outcome.state)


def test_a_run_whose_worker_is_killed_equals_one_whose_worker_is_not(
    new_run: NewRun, undisturbed: Finished, tmp_path: Path
) -> None:
    # The first worker gets no further than this; the second one finds the way free, and is lost at its end.
    run = new_run(fault=waiting({7: tmp_path / "killed"}), workers=WorkersConfig(max_failures=1))
    victims = dict[int, int]()

    def kill(event: Event) -> None:
        if not isinstance(event, Saved) or event.step not in (4, STEPS) or event.step in victims:
            return
        victims[event.step] = int(run.records[-1]["pid"])
        # At the end it may have left by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(victims[event.step], signal.SIGKILL)
        (tmp_path / "killed").touch()

    outcome = run.go(kill)
    workers = {record["pid"] for record in run.records}
    assert workers == set(victims.values())
    assert len(workers) == run.starts == 2
    steps = [record["step"] for record in run.records]
    assert steps.count(4) == 1
    assert run.losses == undisturbed.run.losses
    assert run.trace == undisturbed.run.trace
    assert_same_state(outcome.state, undisturbed.outcome.state)


def test_a_run_that_another_command_goes_on_with_ends_and_writes_nothing(
    new_run: NewRun, tmp_path: Path
) -> None:
    taken_over = tmp_path / "taken-over"
    run = new_run(fault=waiting({2: taken_over}))
    folder = str(run.folder)

    def take_over(event: Event) -> None:
        if is_step(event, 1):
            claim(folder)
            taken_over.touch()

    _, problem = ray.get(single_process.remote(run.job, take_over))
    assert "another command has taken over this run" in problem
    assert run.starts == 1
    assert run.checkpoints == set()


def test_a_finished_run_that_is_resumed_does_nothing(undisturbed: Finished, tmp_path: Path) -> None:
    events, state = ray.get(single_process.remote(undisturbed.run.copied(tmp_path).job))
    assert records_of(events) == []
    assert_same_state(state, undisturbed.outcome.state)


def test_a_resumed_run_of_which_no_checkpoint_is_whole_ends_by_a_line(
    undisturbed: Finished, tmp_path: Path
) -> None:
    """A fresh run, whose worker was lost, would begin again instead."""
    run = undisturbed.run.copied(tmp_path)
    for state in run.folder.glob("step=*/state.pt"):
        state.write_bytes(b"x" * state.stat().st_size)
    job = replace(run.job, storage=replace(run.job.storage, resumes=True))
    _, problem = ray.get(single_process.remote(job))
    assert problem.startswith(f"no whole checkpoint in {run.folder}. step={STEPS:08d}: state.pt is not what")
    assert problem.endswith("Start the run anew, without --resume and with another --out.")
    assert run.checkpoints


@pytest.fixture(scope="module")
def extended(undisturbed: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished run of one worker, resumed by two for four more steps that are far too large."""
    run = undisturbed.run.copied(tmp_path_factory.mktemp("extended"))
    run.job = replace(run.job, total_steps=STEPS + 4, optim=OptimConfig(lr=1.0, ema_decay=0.9))
    run.workers = TWO
    return Finished(run, run.go())


def test_two_workers_go_on_with_the_run_of_one(extended: Finished) -> None:
    assert list(extended.run.losses) == list(range(STEPS + 1, STEPS + 5))
    state = extended.outcome.state
    assert state["step"] == STEPS + 4
    assert from_plain(state["position"]).samples == (STEPS + 4) * 12


def test_two_workers_see_what_one_had_not_seen_and_nothing_else(
    extended: Finished, shards: list[Shard]
) -> None:
    assert extended.run.job.storage.trace is not None
    trace = read_trace(Path(extended.run.job.storage.trace))
    assert [{seen.rank for seen in trace[step]} for step in (1, STEPS + 1, STEPS + 4)] == [
        {0},
        {0, 1},
        {0, 1},
    ]
    seen = Counter((seen.epoch, seen.key) for step in trace.values() for seen in step)
    keys = [f"{shard:05d}{row:04d}" for shard in range(3) for row in range(shards[shard].samples)]
    assert set(seen.values()) == {1}
    assert {sample for sample in seen if sample[0] < 3} == {
        (epoch, key) for epoch in range(3) for key in keys
    }
    assert sum(epoch == 3 for epoch, _ in seen) == 12


def test_the_best_and_the_last_checkpoint_are_kept_and_no_other(
    extended: Finished, undisturbed: Finished
) -> None:
    best = min((4, 8, 12), key=lambda step: undisturbed.run.losses[step])
    assert undisturbed.run.checkpoints == {f"step={step:08d}" for step in {best, STEPS}}
    assert extended.run.losses[STEPS + 4] > undisturbed.run.losses[best]
    assert extended.run.checkpoints == {f"step={step:08d}" for step in (best, STEPS + 4)}


def break_weights(method: nn.Module, number: int) -> None:
    if number == 6:
        next(method.parameters()).data.fill_(math.nan)


def lose_a_key_on_rank_1(method: nn.Module, number: int) -> None:
    if number == 2 and ray.train.get_context().get_world_rank() == 1:
        raise KeyError("what was never there")


def test_a_mistake_in_the_code_of_one_worker_ends_a_run_quietly_without_restarts(
    new_run: NewRun, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run(fault=lose_a_key_on_rank_1, workers=TWO)
    with pytest.raises(TrainingError) as raised:
        run.go()
    assert str(raised.value) == "KeyError: 'what was never there'"
    assert "lose_a_key_on_rank_1" in str(raised.value.__cause__)
    assert run.starts == 2
    assert list(run.losses) == [1]
    assert capfd.readouterr() == ("", "")


def test_the_error_of_a_lost_worker_comes_before_those_of_its_peers() -> None:
    failures = {0: RuntimeError("Connection closed by peer"), 1: ray.exceptions.RayActorError()}
    message = _cause(ray.train.WorkerGroupError("a page of text", failures))
    assert message.startswith("worker 1: ")
    assert "--max-failures" in message
    assert "\n" not in message


def test_an_error_that_restarts_did_not_help_names_its_worker_and_its_type() -> None:
    error = ray.train.WorkerGroupError("a page of text", {2: OSError("no space\nleft on device")})
    assert _cause(error) == "worker 2: OSError: no space left on device"


def test_an_error_of_the_controller_is_one_line() -> None:
    assert (
        _cause(ray.train.ControllerError(ImportError("No module\nfound"))) == "ImportError: No module found"
    )
