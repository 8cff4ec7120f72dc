"""Tracking into a SQLite file, the file of unsent records, and stores that are away from the start."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from beamclip.errors import InputError
from beamclip.summary import Summary, read_summary, write_summary
from beamclip.tracking import UNSENT_FILE, Tracking, replay, tracked_run_id, tracking_uri
from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.store import Event, RunRecord, Store
from beamclip.tracking.unsent import UnsentFile, batched

QUIET = TrackingConfig(system_metrics=False)


@pytest.fixture(autouse=True)
def _no_foreign_store(monkeypatch):
    for name in ("TRACKING_URI", "EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    # A refused connection is refused again: waiting between tries only makes the tests slow.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of all runs of this module: making a store's tables takes over a second."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run_dir(runs, request) -> Path:
    return runs / request.node.name


def wait_for(condition: Callable[[], bool]) -> None:
    """As long as it takes on a busy machine, to the timeout of the tests."""
    while not condition():
        time.sleep(0.05)


def client_of(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def history(uri: str, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client_of(uri).get_metric_history(run_id, key))


def records(steps: range) -> list[dict[str, float]]:
    return [{"step": step, "loss": step / 4} for step in steps]


def count_runs(uri: str, name: str) -> int:
    experiment = client_of(uri).get_experiment_by_name("beamclip")
    found = client_of(uri).search_runs([experiment.experiment_id])
    return sum(run.info.run_name == name for run in found)


def points(steps: range) -> list[tuple[int, float]]:
    return [(step, step / 4) for step in steps]


def refuse(message: str) -> None:
    pytest.fail(f"refused: {message}")


# A SQLite file -----------------------------------------------------------------------------------------


def test_all_runs_of_a_user_share_a_store_unless_an_address_is_given(tmp_path, user_home, monkeypatch):
    of_user = f"sqlite:///{user_home}/mlflow.db"
    assert {tracking_uri(tmp_path / "runs" / "a"), tracking_uri(Path("elsewhere/b"))} == {of_user}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(tmp_path / "runs" / "a") == "http://127.0.0.1:1"


def test_where_no_home_can_be_written_to_the_store_lies_beside_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert tracking_uri(tmp_path / "runs" / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_run_that_began_in_a_file_beside_it_goes_on_there(tmp_path, user_home):
    """As older versions left it: a note of the id alone, and the store beside the run."""
    run_dir = tmp_path / "runs" / "a"
    run_dir.mkdir(parents=True)
    (run_dir / "mlflow_run.json").write_text('{"run_id": "abc"}')
    assert tracking_uri(run_dir) == f"sqlite:///{user_home}/mlflow.db"
    (run_dir.parent / "mlflow.db").touch()
    assert tracking_uri(run_dir) == f"sqlite:///{run_dir.parent}/mlflow.db"
    assert tracking_uri(run_dir.parent / "new") == f"sqlite:///{user_home}/mlflow.db"


def test_a_run_is_resumed_in_the_store_that_it_began_in(tmp_path, monkeypatch):
    store = tracking_uri(tmp_path / "a")
    with Tracking.start(QUIET, run_dir=tmp_path / "a", params={}) as first:
        pass
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
    assert tracking_uri(tmp_path / "a") == store != tracking_uri(tmp_path / "b")
    assert tracked_run_id(tmp_path / "a") == first.run_id


@pytest.mark.slow
def test_a_run_ends_with_its_metrics_params_tags_and_artifacts(run_dir, user_home):
    params = {"tau_teacher": 0.02, "classes": "x" * 7000, "top@k": ""}
    with Tracking.start(QUIET, run_dir=run_dir, params=params, tags={"git": "abc"}) as tracking:
        tracking.log([*records(range(3)), {"step": 3, "recall@1": 0.5, "../up": 1.0, "/a//b": 2.0}])
        (run_dir / "plot.txt").write_text("a plot")
        tracking.artifact(run_dir / "plot.txt", "plots")
    uri = tracking_uri(run_dir)
    run = client_of(uri).get_run(tracking.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run_dir.name
    assert run.data.tags["git"] == "abc"
    assert run.data.params == {"tau_teacher": "0.02", "classes": "x" * 6000, "top_k": ""}
    assert history(uri, tracking.run_id) == points(range(3))
    assert {"recall_1", "_/up", "a/b"} <= set(run.data.metrics)
    artifacts = user_home / "mlartifacts" / tracking.run_id / "artifacts"
    assert (artifacts / "plots" / "plot.txt").read_text() == "a plot"
    assert not (run_dir / UNSENT_FILE).exists()


def test_the_folder_of_a_run_notes_its_id_and_its_store(run_dir: Path) -> None:
    with Tracking.start(QUIET, run_dir=run_dir, params={}) as tracking:
        assert tracking.run_id is not None
    note = json.loads((run_dir / "mlflow_run.json").read_text())
    assert note == {"run_id": tracking.run_id, "store": tracking_uri(run_dir)}


def test_a_run_whose_id_cannot_be_noted_goes_on(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A folder where the file should be: cannot be written by any user.
    (run_dir / "mlflow_run.json" / "x").mkdir(parents=True)
    uri = tracking_uri(run_dir.parent / "other")
    with Tracking.start(QUIET, run_dir=run_dir, params={}, uri=uri) as tracking:
        tracking.log(records(range(2)))
    assert tracking.run_id is not None
    assert history(uri, tracking.run_id) == points(range(2))
    assert "is not noted in its folder" in caplog.text


def test_more_metrics_than_one_request_takes_all_arrive(run_dir):
    with Tracking.start(QUIET, run_dir=run_dir, params={f"p{i}": i for i in range(250)}) as tracking:
        tracking.log(records(range(2500)))
    uri = tracking_uri(run_dir)
    assert history(uri, tracking.run_id) == points(range(2500))
    assert len(client_of(uri).get_run(tracking.run_id).data.params) == 250


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_exception_decides_the_status_and_goes_on(run_dir, error, status):
    with pytest.raises(error), Tracking.start(QUIET, run_dir=run_dir, params={}) as tracking:
        raise error
    assert client_of(tracking_uri(run_dir)).get_run(tracking.run_id).info.status == status


def test_a_resumed_run_keeps_its_id_and_takes_other_values_as_tags(run_dir):
    with Tracking.start(QUIET, run_dir=run_dir, params={"epochs": 2, "seed": 0}) as first:
        first.log(records(range(2)))
    again = Tracking.start(QUIET, run_dir=run_dir, params={"epochs": 5, "seed": 0}, run_id=first.run_id)
    uri = tracking_uri(run_dir)
    assert again.run_id == first.run_id
    assert client_of(uri).get_run(first.run_id).info.status == "RUNNING"
    again.log(records(range(2, 4)))
    again.close()
    again.close()
    run = client_of(uri).get_run(first.run_id)
    assert again.run_id == first.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "2", "seed": "0"}
    assert run.data.tags["resumed.epochs"] == "5"
    assert "resumed.seed" not in run.data.tags
    assert history(uri, first.run_id) == points(range(4))


def start_and_end(run_dir: Path, config: TrackingConfig = QUIET, **given: Any) -> Any:
    """The run as MLflow has it afterwards."""
    with Tracking.start(config, run_dir=run_dir, params={}, **given) as tracking:
        pass
    return client_of(tracking_uri(run_dir)).get_run(tracking.run_id)


def experiment_name(run_dir: Path, run: Any) -> str:
    return str(client_of(tracking_uri(run_dir)).get_experiment(run.info.experiment_id).name)


def test_the_experiment_is_the_flags_then_the_environments(run_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    of_team = start_and_end(run_dir)
    assert experiment_name(run_dir, of_team) == "team"
    flag = start_and_end(run_dir, TrackingConfig(experiment="flag", system_metrics=False))
    assert experiment_name(run_dir, flag) == "flag"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", of_team.info.experiment_id)
    assert experiment_name(run_dir, start_and_end(run_dir)) == "team"
    # In another experiment, MLflow would not show it below its parent.
    child = start_and_end(run_dir, tags={"mlflow.parentRunId": flag.info.run_id})
    assert experiment_name(run_dir, child) == "flag"


def test_a_run_that_the_environment_names_is_logged_into_once(run_dir, monkeypatch):
    launcher = replace(QUIET, run_name="launcher")
    began = start_and_end(run_dir, launcher, tags={"by": "launcher"})
    resumed = start_and_end(run_dir)
    monkeypatch.setenv("MLFLOW_RUN_ID", began.info.run_id)
    named = start_and_end(run_dir, run_id=resumed.info.run_id, tags={"command": "distill"})
    assert (named.info.run_id, named.info.run_name) == (began.info.run_id, "launcher")
    assert {"by": "launcher", "command": "distill"}.items() <= named.data.tags.items()
    assert start_and_end(run_dir).info.run_id not in (began.info.run_id, resumed.info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", began.info.run_id)
    flag = start_and_end(run_dir, TrackingConfig(experiment="flag", system_metrics=False))
    assert flag.info.run_id != began.info.run_id


@pytest.mark.slow
def test_the_store_lies_in_the_home_folder_whatever_its_path_is_called(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "a?b%41 #é&uri=false"))
    folder = tmp_path / "a?b%41 #é&uri=false" / "beamclip"
    run = start_and_end(tmp_path / "run")
    assert run.info.status == "FINISHED"
    assert (folder / "mlflow.db").read_bytes().startswith(b"SQLite format 3")
    assert {path.name for path in tmp_path.iterdir()} == {folder.parent.name, "run"}
    assert run.info.artifact_uri.startswith((folder / "mlartifacts").as_uri())


def test_a_run_that_the_store_does_not_know_goes_on_as_a_new_one(run_dir, caplog):
    with Tracking.start(QUIET, run_dir=run_dir, params={}, run_id="0" * 32) as tracking:
        tracking.log(records(range(2)))
    assert tracking.run_id != "0" * 32
    assert history(tracking_uri(run_dir), tracking.run_id) == points(range(2))
    assert "The run goes on as a new one" in caplog.text


def test_system_metrics_arrive_and_go_on_counting_after_a_resume(run_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")

    def sampled_steps(wanted: int, run_id: str | None) -> tuple[list[int], str]:
        def steps() -> list[int]:
            key = "system/cpu_utilization_percentage"
            return [step for step, _ in history(tracking_uri(run_dir), tracking.run_id, key)]

        with Tracking.start(TrackingConfig(), run_dir=run_dir, params={}, run_id=run_id) as tracking:
            wait_for(lambda: len(steps()) >= wanted)
        return steps(), tracking.run_id

    first, run_id = sampled_steps(2, None)
    both, _ = sampled_steps(len(first) + 2, run_id)
    assert first == list(range(len(first)))
    assert both == list(range(len(both)))


def test_an_artifact_that_is_gone_is_dropped_and_the_rest_arrives(run_dir, caplog):
    with Tracking.start(QUIET, run_dir=run_dir, params={}) as tracking:
        tracking.artifact(run_dir / "never_written.png")
        tracking.log(records(range(2)))
    assert "never_written.png is gone" in caplog.text
    assert history(tracking_uri(run_dir), tracking.run_id) == points(range(2))


@pytest.mark.slow
def test_runs_that_first_use_a_store_together_all_arrive(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    program = (
        "import sys; from pathlib import Path; from beamclip.tracking import Tracking, TrackingConfig\n"
        "quiet = TrackingConfig(system_metrics=False)\n"
        "with Tracking.start(quiet, run_dir=Path(sys.argv[1]), params={}) as t:\n"
        "    t.log([{'step': 0, 'loss': 0.0}])\n"
        "print(t.run_id)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path / name], stdout=-1, stderr=-1, text=True)
        for name in "ab"
    ]
    outputs = [run.communicate() for run in runs]
    assert [error for _, error in outputs] == ["", ""]
    ids = {output.strip() for output, _ in outputs}
    uri = tracking_uri(tmp_path / "a")
    assert len(ids) == 2
    assert [history(uri, run_id) for run_id in ids] == [points(range(1))] * 2
    assert len({client_of(uri).get_run(run_id).info.experiment_id for run_id in ids}) == 1


# The unsent file ---------------------------------------------------------------------------------------


class FailsAt(Store):
    """A store whose connection breaks at the given `send`."""

    def __init__(self, uri: str, at: int) -> None:
        super().__init__(uri)
        self.left = at

    def send(self, run_id: str, event: Event) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("cable pulled")
        super().send(run_id, event)


def unsent_file(run_dir: Path) -> UnsentFile:
    """Three requests of metrics with other events between them, for a run that was never made."""
    run_dir.mkdir()
    run = RunRecord(id=None, experiment="beamclip", name=run_dir.name, tags={"note": "kept"}, start_ms=1_000)
    rows = [["loss", step / 4, step, 5_000 + step] for step in range(6)]
    metrics = [{"kind": "metrics", "metrics": rows[i : i + 2]} for i in (0, 2, 4)]
    params = [{"kind": "params", "params": {name: "1"}} for name in ("p", "q")]
    file = UnsentFile(run_dir)
    file.append(run, [metrics[0], params[0], metrics[1]])
    file.append(run, [params[1], metrics[2], {"kind": "end", "status": "FINISHED", "time_ms": 9_000}])
    return file


def test_neighbouring_metrics_are_joined_up_to_one_request():
    rows = [["loss", 0.0, step, 1] for step in range(1500)]
    events = [{"kind": "metrics", "metrics": [row]} for row in rows] + [{"kind": "params", "params": {}}]
    joined = batched(events)
    assert [len(event.get("metrics", [])) for event in joined] == [1000, 500, 0]
    assert [row for event in joined for row in event.get("metrics", [])] == rows


@pytest.mark.slow
@pytest.mark.parametrize("at", range(6))
def test_a_replay_that_broke_off_sends_the_rest_once_to_the_same_run(run_dir, at):
    file = unsent_file(run_dir)
    uri = tracking_uri(run_dir)
    with pytest.raises(ConnectionError):
        file.send(FailsAt(uri, at), refuse)
    left = file.path.read_text().splitlines()
    assert len(left) == 1 + 6 - at
    run_id = replay(run_dir, refuse)
    assert run_id == json.loads(left[0])["id"]
    assert history(uri, run_id) == points(range(6))
    run = client_of(uri).get_run(run_id)
    assert run.data.params == {"p": "1", "q": "1"}
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 1_000, 9_000)
    assert count_runs(uri, run.info.run_name) == 1
    assert not file.path.exists()


def test_records_sent_twice_are_kept_once(run_dir):
    file = unsent_file(run_dir)
    with pytest.raises(ConnectionError):
        file.send(FailsAt(tracking_uri(run_dir), 0), refuse)
    before = file.path.read_text()
    run_id = replay(run_dir, refuse)
    file.path.write_text(before)
    assert replay(run_dir, refuse) == run_id
    assert history(tracking_uri(run_dir), run_id) == points(range(6))


def test_a_failing_artifact_storage_does_not_hold_back_metrics(run_dir):
    class NoArtifacts(Store):
        def send(self, run_id: str, event: Event) -> None:
            if event["kind"] == "artifact":
                raise ConnectionError("no such bucket")
            super().send(run_id, event)

    file = UnsentFile(run_dir)
    run_dir.mkdir()
    rows = [["loss", step / 4, step, 5_000] for step in range(3)]
    run = RunRecord(id=None, experiment="beamclip", name=run_dir.name, tags={}, start_ms=1_000)
    artifact = {"kind": "artifact", "path": "/plots", "folder": None}
    file.append(run, [artifact, {"kind": "metrics", "metrics": rows}])
    with pytest.raises(ConnectionError):
        file.send(NoArtifacts(tracking_uri(run_dir)), refuse)
    header, *events = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert history(tracking_uri(run_dir), header["id"]) == points(range(3))
    assert events == [artifact]


def test_half_a_line_at_the_end_does_not_stop_a_replay(run_dir):
    file = unsent_file(run_dir)
    with file.path.open("a") as tail:
        tail.write('{"kind": "metr')
    run_id = replay(run_dir, refuse)
    assert history(tracking_uri(run_dir), run_id) == points(range(6))


def test_half_a_line_does_not_swallow_the_event_that_follows_it(run_dir):
    file = unsent_file(run_dir)
    header, *events = file.path.read_text().splitlines(keepends=True)
    file.path.write_text("".join([header, *events[:-1], events[-1][:9]]))
    file.append(RunRecord(**json.loads(header)), [json.loads(events[-1])])
    assert file.path.read_text() == "".join([header, *events])


def test_a_replay_into_another_store_is_an_input_error_and_keeps_the_file(run_dir):
    file = unsent_file(run_dir)
    header, *events = file.path.read_text().splitlines()
    text = "\n".join([json.dumps({**json.loads(header), "id": "0" * 32}), *events]) + "\n"
    file.path.write_text(text)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        replay(run_dir, refuse)
    assert file.path.read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": null}'])
def test_a_file_without_a_run_is_an_input_error(run_dir, text):
    run_dir.mkdir()
    (run_dir / UNSENT_FILE).write_text(text)
    with pytest.raises(InputError, match="line 1"):
        replay(run_dir, refuse)


# A store that is away ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_whose_store_is_away_from_the_start_is_made_by_the_replay(
    run_dir, user_home, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    with Tracking.start(QUIET, run_dir=run_dir, params={"seed": 1}, tags={"git": "abc"}) as tracking:
        tracking.log(records(range(3)))
        tracking.log(records(range(3, 5)))
    assert tracking.run_id is None
    assert [record.levelname for record in caplog.records if record.name == "beamclip.tracking"] == [
        "WARNING"
    ]
    assert f"replay {run_dir}" in caplog.text
    assert "no answer (Connection refused). The run goes on" in caplog.text
    assert "secret" not in caplog.text
    write_summary(run_dir, Summary(command="distill", status="finished", wall_seconds=1.0))

    uri = f"sqlite:///{user_home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    command = [sys.executable, "-m", "beamclip.tracking", "replay", run_dir]
    done = subprocess.run(command, capture_output=True, text=True)
    run_id = read_summary(run_dir).mlflow_run_id
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{run_dir}: sent to MLflow run {run_id}\n"
    run = client_of(uri).get_run(run_id)
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", run_dir.name, {"seed": "1"})
    assert run.data.tags["git"] == "abc"
    assert history(uri, run_id) == points(range(5))
    with pytest.raises(InputError, match="Nothing waits"):
        replay(run_dir, refuse)


def test_a_run_resumed_after_a_start_without_store_is_one_run(run_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with Tracking.start(QUIET, run_dir=run_dir, params={}) as first:
        first.log(records(range(3)))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with Tracking.start(QUIET, run_dir=run_dir, params={}, run_id=first.run_id) as second:
        second.log(records(range(3, 6)))
    uri = tracking_uri(run_dir)
    assert history(uri, second.run_id) == points(range(6))
    assert count_runs(uri, run_dir.name) == 1


def test_a_store_and_a_run_directory_that_both_fail_do_not_stop_a_run(tmp_path, monkeypatch, caplog):
    run_dir = tmp_path / "a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    # A folder where the file should be: cannot be written by any user.
    (run_dir / UNSENT_FILE).mkdir(parents=True)
    with Tracking.start(QUIET, run_dir=run_dir, params={}) as tracking:
        tracking.log(records(range(3)))
    assert "records are lost" in caplog.text
