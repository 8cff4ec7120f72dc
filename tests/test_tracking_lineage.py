"""Data sets and models that MLflow links: who made which, who used it, whose scores; sent late as well."""

import json
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from beamclip.summary import Summary, write_summary
from beamclip.tracking import Dataset, ModelRef, Tracking, replay, run_dir_of, tracking_uri
from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.store import Event, RunRecord, Store
from beamclip.tracking.unsent import UnsentFile, batched
from beamclip.tracking.view import EXPERIMENT_TAGS

QUIET = TrackingConfig(system_metrics=False)
TRAIN = Dataset(
    "glyphs/train", "0123456789abcdef", "/data/glyphs/train", "training", {"samples": 7}, {"image": "binary"}
)
TEST = Dataset("glyphs/test", "fedcba9876543210", "s3://bucket/glyphs/test", "test")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri(Path("runs/any")))


def refuse(message: str) -> None:
    pytest.fail(f"refused: {message}")


def train(run_dir: Path) -> Tracking:
    """A run as a training leaves it: a model, and its score on labelled images."""
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "weights.safetensors").write_bytes(b"weights")
    write_summary(run_dir, Summary(command="pretrain", status="finished", wall_seconds=1.0))
    with Tracking.start(QUIET, run_dir=run_dir, params={"lr": 0.1}) as tracking:
        tracking.inputs(datasets=[TRAIN])
        tracking.model(run_dir / "model", "resnet/10:t", "clip", 30)
        tracking.log([{"step": 30, "zeroshot_top1": 0.25}], model="own", dataset=TEST)
    return tracking


def model_of(run_id: str) -> Any:
    (output,) = client().get_run(run_id).outputs.model_outputs
    return client().get_logged_model(output.model_id)


def used_by(run_id: str) -> list[str]:
    return [each.model_id for each in client().get_run(run_id).inputs.model_inputs]


def test_a_run_has_one_logged_model_with_its_files_params_and_scores(tmp_path: Path) -> None:
    tracking = train(tmp_path / "teacher")
    assert tracking.run_id is not None
    model = model_of(tracking.run_id)
    assert (model.name, model.model_type, str(model.status)) == ("resnet-10-t", "clip", "READY")
    assert (model.params, model.tags["folder"]) == (
        {"lr": "0.1"},
        str(tmp_path / "teacher" / "model"),
    )
    (score,) = model.metrics
    assert (score.key, score.value, score.step) == ("zeroshot_top1", 0.25, 30)
    assert (score.dataset_name, score.dataset_digest) == (TEST.name, TEST.digest)
    assert client().get_run(tracking.run_id).data.metrics["zeroshot_top1"] == 0.25
    files = [file.path for file in client().list_logged_model_artifacts(model.model_id)]
    assert files == ["weights.safetensors"]
    assert client().list_artifacts(tracking.run_id) == []


def test_data_sets_are_linked_once_with_digest_source_context_and_counts(tmp_path: Path) -> None:
    with Tracking.start(QUIET, run_dir=tmp_path / "a", params={}) as tracking:
        tracking.inputs(datasets=[TRAIN, TEST])
        tracking.inputs(datasets=[TRAIN])
    found = client().get_run(tracking.run_id).inputs.dataset_inputs
    by_context = {each.tags[0].value: each.dataset for each in found}
    assert len(found) == 2
    train, test = by_context["training"], by_context["test"]
    assert (train.name, train.digest, train.source_type) == ("glyphs/train", TRAIN.digest, "local")
    assert json.loads(train.source) == {"uri": "/data/glyphs/train"}
    assert json.loads(train.profile) == {"num_rows": 7}
    (column,) = json.loads(train.schema)["mlflow_colspec"]
    assert (column["name"], column["type"]) == ("image", "binary")
    assert test.source_type == "s3"


def test_a_run_that_names_the_folder_of_another_is_linked_to_its_model(tmp_path: Path) -> None:
    teacher = train(tmp_path / "teacher")
    assert teacher.run_id is not None
    folder = run_dir_of(tmp_path / "teacher" / "model")
    assert folder == tmp_path / "teacher"
    ref = ModelRef("teacher", "abc", str(folder))
    with Tracking.start(QUIET, run_dir=tmp_path / "evaluate", params={}) as tracking:
        tracking.inputs(models=[ref])
        tracking.log([{"step": 0, "probe_top1": 0.5}], model=ref, dataset=TEST)
    model = model_of(teacher.run_id)
    assert used_by(tracking.run_id or "") == [model.model_id]
    scores = {metric.key: (metric.value, metric.run_id) for metric in model.metrics}
    assert scores["probe_top1"] == (0.5, tracking.run_id)


def test_a_model_that_no_run_made_has_one_stand_in_for_all_runs(tmp_path: Path) -> None:
    ref = ModelRef("open_clip:ViT-B-16/openai", "abc")
    runs = []
    for name in ("a", "b"):
        with Tracking.start(QUIET, run_dir=tmp_path / name, params={}) as tracking:
            tracking.inputs(models=[ref])
        runs.append(tracking.run_id or "")
    (model_id,) = {model for run in runs for model in used_by(run)}
    model = client().get_logged_model(model_id)
    assert model.name == "open_clip-ViT-B-16-openai"
    assert model.tags["address"] == ref.address
    assert run_dir_of(tmp_path) is None


def test_metrics_of_different_models_are_different_requests() -> None:
    of_run, of_model = (
        {"kind": "metrics", "metrics": [["loss", 0.0, 1, 1]]},
        {"kind": "metrics", "metrics": [["top1", 0.0, 1, 1]], "model": "own", "dataset": ["d", "0"]},
    )
    joined = [*batched([of_run, of_run, of_model, of_model, of_run])]
    assert [(len(event["metrics"]), event.get("model")) for event in joined] == [
        (2, None),
        (2, "own"),
        (1, None),
    ]


def test_a_run_of_models_whose_server_was_away_is_made_by_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher"
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        assert train(teacher).run_id is None
        with Tracking.start(QUIET, run_dir=tmp_path / "student", params={}) as student:
            student.inputs(datasets=[TRAIN], models=[ModelRef("teacher", "abc", str(teacher))])
    made = replay(teacher, refuse)
    model = model_of(made)
    assert [metric.key for metric in model.metrics] == ["zeroshot_top1"]
    assert [file.path for file in client().list_logged_model_artifacts(model.model_id)] == [
        "weights.safetensors"
    ]
    # The student was tracked before anyone knew the id of its teacher's run.
    assert used_by(replay(tmp_path / "student", refuse)) == [model.model_id]


class BreaksAfter(Store):
    """A store whose connection breaks right after the given `send` arrived: the client cannot know."""

    def __init__(self, uri: str, sends: int) -> None:
        super().__init__(uri)
        self.left = sends

    def send(self, run_id: str, event: Event) -> None:
        super().send(run_id, event)
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("cable pulled")


def test_what_is_sent_twice_is_kept_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    events: list[Event] = [
        {"kind": "inputs", "datasets": [{**vars(TRAIN)}], "models": [vars(ModelRef("x", "abc"))]},
        {"kind": "model", "name": "student", "type": "student", "step": 3, "tags": {}, "params": {"a": "1"}},
        {"kind": "metrics", "metrics": [["top1", 0.5, 3, 9]], "model": "own", "dataset": ["d", "0"]},
        {"kind": "model_files", "path": str(tmp_path / "model")},
        {"kind": "end", "status": "FINISHED", "time_ms": 10},
    ]
    file = UnsentFile(tmp_path)
    file.append(RunRecord(None, "beamclip", "twice", {}, 1), events)
    for _ in range(len(events)):
        # Each event arrives, and is sent again by the next try.
        if not file.path.exists():
            break
        with pytest.raises(ConnectionError):
            file.send(BreaksAfter(tracking_uri(tmp_path), 0), refuse)
        header, *left = file.path.read_text().splitlines()
        rest = [json.loads(line) for line in left]
        Store(tracking_uri(tmp_path)).send(json.loads(header)["id"], rest[0])
        file._write(RunRecord(**json.loads(header)), rest[1:])
    run_id = json.loads(header)["id"]
    run = client().get_run(run_id)
    model = model_of(run_id)
    assert (len(run.inputs.dataset_inputs), len(run.inputs.model_inputs)) == (1, 1)
    assert [(metric.key, metric.value) for metric in model.metrics] == [("top1", 0.5)]
    found = client().search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    assert len(found) == 1


def test_a_model_whose_files_are_gone_is_dropped_and_the_run_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Tracking.start(QUIET, run_dir=tmp_path / "a", params={}) as tracking:
        tracking.model(tmp_path / "gone", "student", "student", 1)
    assert "gone is gone" in caplog.text
    assert client().get_run(tracking.run_id).info.status == "FINISHED"


def test_experiments_open_on_their_runs_also_those_that_others_made(tmp_path: Path) -> None:
    for_teams = client().create_experiment("a team's")
    config = TrackingConfig(system_metrics=False, experiment="a team's")
    with Tracking.start(config, run_dir=tmp_path / "a", params={}):
        pass
    with Tracking.start(QUIET, run_dir=tmp_path / "b", params={}) as tracking:
        pass
    for number in (for_teams, client().get_run(tracking.run_id).info.experiment_id):
        assert EXPERIMENT_TAGS.items() <= client().get_experiment(number).tags.items()
