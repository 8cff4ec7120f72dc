"""From the list of URLs to the score of a student, as MLflow links the runs of the commands."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.distill import distill
from beamclip.commands.evaluate import evaluate
from beamclip.commands.ingest import ingest_urls
from beamclip.commands.lineage import dataset_of
from beamclip.commands.options import DistillConfig, EvaluateConfig, ScoringConfig
from beamclip.config import read_config
from beamclip.data.config import StreamConfig
from beamclip.data.listing import list_shards
from beamclip.ingest.config import IngestConfig
from beamclip.models.config import StudentConfig
from beamclip.summary import read_summary
from beamclip.tracking import tracking_uri
from beamclip.training.config import OptimConfig

HERE = WorkersConfig(num_workers=0)


@pytest.fixture(scope="module")
def runs(teacher, corpus, workspace) -> SimpleNamespace:
    """Summaries of the commands."""
    config = DistillConfig(
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        classes=corpus.classes,
        out=workspace / "linked",
        student=StudentConfig(student="test_resnet"),
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=2),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        workers=HERE,
    )
    student = distill(config)
    scores = EvaluateConfig(
        model=str(workspace / "linked" / "model"),
        data=(str(corpus.test),),
        classes=corpus.classes,
        out=workspace / "linked-scores",
        workers=HERE,
    )
    return SimpleNamespace(
        ingest=read_summary(corpus.train), teacher=teacher[1], student=student, scores=evaluate(scores)
    )


@pytest.fixture(scope="module")
def client() -> MlflowClient:
    return MlflowClient(tracking_uri(Path("runs/any")))


def datasets(client: MlflowClient, summary: Any) -> dict[str, tuple[str, str]]:
    """Context -> name and digest."""
    found = client.get_run(summary.mlflow_run_id).inputs.dataset_inputs
    return {each.tags[0].value: (each.dataset.name, each.dataset.digest) for each in found}


def model_of(client: MlflowClient, summary: Any) -> Any:
    (output,) = client.get_run(summary.mlflow_run_id).outputs.model_outputs
    return client.get_logged_model(output.model_id)


def test_an_ingest_is_a_run_with_its_counts_its_list_and_its_shards(runs, client, workspace):
    run = client.get_run(runs.ingest.mlflow_run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["command"]) == ("FINISHED", "train", "ingest")
    assert (run.data.metrics["images"], run.data.metrics["failed"]) == (200, 0)
    assert run.data.metrics["images_per_second"] > 0
    assert run.data.params["shard_size"] == "50"
    found = datasets(client, runs.ingest)
    assert found["source"][0] == f"{workspace.name}/train.parquet"
    assert found["output"][0] == f"{workspace.name}/train"


def test_what_an_ingest_wrote_is_what_trainings_read(runs, client):
    written = datasets(client, runs.ingest)["output"]
    assert datasets(client, runs.teacher)["training"] == written
    assert datasets(client, runs.student)["training"] == written
    assert datasets(client, runs.student)["validation"] == datasets(client, runs.scores)["test"] != written


def test_the_student_comes_from_the_teachers_model_and_its_scores_are_its_models(runs, client):
    teacher, student = model_of(client, runs.teacher), model_of(client, runs.student)
    assert (teacher.model_type, student.model_type, student.name) == ("clip", "student", "test_resnet")
    used = [client.get_run(run.mlflow_run_id).inputs.model_inputs for run in (runs.student, runs.scores)]
    assert [[each.model_id for each in models] for models in used] == [[teacher.model_id], [student.model_id]]
    by_run = {metric.run_id for metric in student.metrics if metric.key == "zeroshot_top1"}
    assert by_run == {runs.student.mlflow_run_id, runs.scores.mlflow_run_id}
    assert "teacher_zeroshot_top1" in client.get_run(runs.student.mlflow_run_id).data.metrics
    assert not [metric.key for metric in student.metrics if metric.key.startswith("teacher_")]


def test_the_model_is_stored_once_and_the_parameters_had_an_effect(runs, client):
    run = client.get_run(runs.student.mlflow_run_id)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"summary.json", "config.yaml", "plots", "report.html"}
    model = model_of(client, runs.student)
    stored = {file.path for file in client.list_logged_model_artifacts(model.model_id)}
    assert "open_clip_config.json" in stored
    assert run.data.params["tau_teacher"] == model.params["tau_teacher"] == "0.02"
    assert "feature_kind" not in run.data.params


def test_an_ingest_with_nothing_left_to_do_is_no_further_run(corpus, client, runs, workspace):
    experiment = client.get_run(runs.ingest.mlflow_run_id).info.experiment_id
    before = len(client.search_runs([experiment]))
    again = ingest_urls(read_config(IngestConfig, corpus.train / "config.yaml"))
    assert again.mlflow_run_id == runs.ingest.mlflow_run_id
    assert len(client.search_runs([experiment])) == before


def test_digests_follow_the_shards_and_not_their_place(corpus, tmp_path):
    shards = list_shards(str(corpus.train))
    moved = [replace(shard, path=shard.path.replace("/train/", "/elsewhere/"), source=3) for shard in shards]
    first = dataset_of(str(corpus.train), shards, "training")
    assert dataset_of("s3://key:secret@bucket/a/b/c/", moved, "test").digest == first.digest
    assert dataset_of("s3://bucket/a/b/c/", moved, "test").name == "b/c"
    assert dataset_of("x", shards[1:], "training").digest != first.digest
    assert dataset_of("x", [replace(shards[0], size=1), *shards[1:]], "training").digest != first.digest
    assert first.counts["samples"] == 200
    assert dict(first.fields) == {"image": "binary"}
