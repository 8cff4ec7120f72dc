"""The storage of a cluster: which places of a command are below it."""

from dataclasses import replace
from pathlib import Path

import pytest

from beamclip.commands.options import DistillConfig, EmbedConfig, EvaluateConfig, ScoringConfig
from beamclip.errors import FailedRunError, InputError
from beamclip.ingest.config import IngestConfig
from beamclip.runs.backup import bring_run, keep_whole
from beamclip.runs.folder import checkpoint_address, new_run_dir
from beamclip.storage import VARIABLE, in_storage, storage, stored_run, with_storage
from beamclip.training.config import CheckpointConfig


@pytest.fixture(autouse=True)
def _bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "s3://bucket/beamclip/")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A storage in a folder that machines would mount."""
    shared = tmp_path / "mounted"
    monkeypatch.setenv(VARIABLE, str(shared))
    return shared


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("shards", "s3://bucket/beamclip/shards"),
        ("./a/../shards", "s3://bucket/beamclip/shards"),
        ("/data/shards", "/data/shards"),
        ("~/shards", "~/shards"),
        ("gs://other/shards", "gs://other/shards"),
    ],
)
def test_relative_places_start_in_the_storage(given: str, place: str) -> None:
    assert in_storage(given) == place


def test_without_a_storage_places_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "  ")
    assert storage() is None
    assert in_storage("shards") == "shards"
    assert stored_run(Path("runs/x")) is None
    assert with_storage(DistillConfig(data=("shards",))).data == ("shards",)


def test_what_several_machines_read_is_below_and_what_the_user_has_is_not() -> None:
    given = DistillConfig(
        data=("a", "/b"),
        teacher="runs/teacher",
        classes=Path("classes.yaml"),
        out=Path("runs/x"),
        scoring=ScoringConfig(eval_data="labelled"),
        checkpoint=CheckpointConfig(checkpoints="kept"),
    )
    assert with_storage(given) == replace(
        given,
        data=("s3://bucket/beamclip/a", "/b"),
        scoring=ScoringConfig(eval_data="s3://bucket/beamclip/labelled"),
        checkpoint=CheckpointConfig(checkpoints="s3://bucket/beamclip/kept"),
    )


def test_what_is_made_for_others_is_below_and_a_url_list_is_the_users() -> None:
    ingest = with_storage(IngestConfig(urls="list.parquet", out="shards"))
    assert (ingest.urls, ingest.out) == ("list.parquet", "s3://bucket/beamclip/shards")
    assert with_storage(EmbedConfig(out="cache")).out == "s3://bucket/beamclip/cache"
    scored = with_storage(EvaluateConfig(data="labelled", train_data="more", out=Path("runs/s")))
    assert (scored.data, scored.train_data) == ("s3://bucket/beamclip/labelled", "s3://bucket/beamclip/more")
    assert scored.out == Path("runs/s")


def test_checkpoints_of_a_run_are_in_the_storage_unless_a_place_is_given() -> None:
    assert checkpoint_address(None, Path("runs/x")) == "s3://bucket/beamclip/runs/x"
    assert checkpoint_address(None, Path("/elsewhere/x")) == "s3://bucket/beamclip/runs/elsewhere-x"
    assert checkpoint_address("gs://other/x", Path("runs/x")) == "gs://other/x"


def test_the_folder_of_a_run_goes_by_its_relative_name_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_run_dir(Path("runs/x"), "distill") == Path("runs/x")
    monkeypatch.delenv(VARIABLE)
    assert new_run_dir(Path("runs/x"), "distill") == Path.cwd() / "runs/x"


def test_a_run_comes_back_without_its_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path("runs/x")
    for name in ("config.yaml", "model/weights", "plots/curves.png", "checkpoints/step=00000001/state"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    assert keep_whole(checkpoint_address(None, run), run) == f"{folder}/runs/x/run"
    other = folder.parent / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    bring_run("runs/x")
    brought = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert brought == ["config.yaml", "model/weights", "plots/curves.png"]
    assert (run / "model/weights").read_text() == "model/weights"


def test_a_run_that_is_here_stays_as_it_is(folder: Path) -> None:
    kept = folder / "runs/x/run/config.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("there")
    Path("runs/x").mkdir(parents=True)
    bring_run("runs/x")
    assert list(Path("runs/x").iterdir()) == []


def test_a_copy_that_fails_is_an_error_that_says_what_to_do(folder: Path) -> None:
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/summary.json").write_text("{}")
    folder.write_text("no folder")
    with pytest.raises(FailedRunError, match=r"not all of runs/x could be copied there: .* Copy it yourself"):
        keep_whole(f"{folder}/runs/x", Path("runs/x"))


def test_a_run_in_the_storage_itself_is_not_copied_into_itself(folder: Path) -> None:
    run = folder / "runs/x"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    assert keep_whole(str(run), run) is None
    assert [path.name for path in run.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("place", ["..", "../shards", "a/../../b"])
def test_a_place_that_leads_out_of_the_storage_is_refused(place: str) -> None:
    with pytest.raises(InputError, match=r"leads out of s3://bucket/beamclip"):
        in_storage(place)
