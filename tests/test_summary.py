"""summary.json: stable keys, strict JSON, all or nothing."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from beamclip.errors import InputError
from beamclip.summary import (
    SUMMARY_FILE,
    Counts,
    Summary,
    git_commit,
    library_versions,
    read_summary,
    write_summary,
)

STABLE_KEYS = {
    "command",
    "status",
    "wall_seconds",
    "images",
    "images_per_second",
    "metrics",
    "counts",
    "versions",
    "git_commit",
    "mlflow_run_id",
    "paths",
    "stages",
}


def make_summary() -> Summary:
    return Summary(
        command="distill",
        status="finished",
        wall_seconds=12.5,
        ended_at="2026-11-28T12:00:00+00:00",
        images=640,
        images_per_second=51.2,
        metrics={"zeroshot_top1": 0.25},
        counts=Counts(attempted=10, succeeded=8, failed={"decode": 1}, skipped={"no label": 1}),
        paths={"model": "runs/a/model"},
        stages={"training": {"seconds": 9.0, "losses": [2.0, 1.0]}},
    )


def make_checkout(root: Path) -> str:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", root, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (root / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "-qm", "one")
    return git("rev-parse", "HEAD")


def test_a_written_summary_has_the_stable_keys(tmp_path):
    path = write_summary(tmp_path / "new" / "run", make_summary())
    record = json.loads(path.read_text())
    assert set(record) >= STABLE_KEYS
    assert set(record["counts"]) == {"attempted", "succeeded", "failed", "skipped"}
    assert record["counts"]["failed"] == {"decode": 1}


def test_a_summary_reads_back_as_it_was_written(tmp_path):
    write_summary(tmp_path, make_summary())
    assert read_summary(tmp_path) == make_summary()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_becomes_null_with_a_note(tmp_path, bad):
    summary = replace(
        make_summary(), metrics={"loss": bad, "top1": 0.5}, stages={"t": {"losses": [1.0, bad]}}
    )
    text = write_summary(tmp_path, summary).read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["metrics"] == {"loss": None, "top1": 0.5}
    assert record["stages"]["t"]["losses"] == [1.0, None]
    assert record["notes"] == [
        f"metrics.loss was {bad} and is written as null",
        f"stages.t.losses[1] was {bad} and is written as null",
    ]


def test_a_failed_write_leaves_the_former_summary_and_no_draft(tmp_path):
    write_summary(tmp_path, make_summary())
    with pytest.raises(TypeError):
        write_summary(tmp_path, replace(make_summary(), stages={"path": Path("x")}))
    assert read_summary(tmp_path) == make_summary()
    assert [item.name for item in tmp_path.iterdir()] == [SUMMARY_FILE]


def test_a_failed_replacement_leaves_no_draft(tmp_path):
    # A folder in the file's place makes the last step fail after the draft was written.
    (tmp_path / SUMMARY_FILE / "in_the_way").mkdir(parents=True)
    with pytest.raises(OSError, match=SUMMARY_FILE):
        write_summary(tmp_path, make_summary())
    assert [item.name for item in tmp_path.iterdir()] == [SUMMARY_FILE]


def test_keys_of_a_newer_version_are_passed_over(tmp_path):
    path = write_summary(tmp_path, make_summary())
    path.write_text(json.dumps({**json.loads(path.read_text()), "novelty": 1}))
    assert read_summary(tmp_path) == make_summary()


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"counts": {"surprise": 1}}'])
def test_a_missing_or_foreign_file_is_an_input_error_that_names_it(tmp_path, text):
    if text is not None:
        (tmp_path / SUMMARY_FILE).write_text(text)
    with pytest.raises(InputError, match=SUMMARY_FILE):
        read_summary(tmp_path)


def test_versions_name_the_libraries_that_run():
    import torch

    # A local label such as +cpu is part of torch's own version but not always of its metadata.
    assert torch.__version__.split("+")[0] == library_versions()["torch"].split("+")[0]
    assert "beamclip" in library_versions()


def test_commit_is_that_of_the_checkout(tmp_path):
    assert git_commit(tmp_path) is None
    commit = make_checkout(tmp_path)
    assert git_commit(tmp_path) == commit


def test_a_changed_tracked_file_makes_the_commit_dirty_and_a_new_one_does_not(tmp_path):
    commit = make_checkout(tmp_path)
    (tmp_path / "untracked.txt").write_text("new")
    assert git_commit(tmp_path) == commit
    (tmp_path / "a.txt").write_text("two")
    assert git_commit(tmp_path) == f"{commit}+dirty"


def test_a_folder_inside_a_checkout_is_not_taken_for_one(tmp_path):
    make_checkout(tmp_path)
    (tmp_path / "site-packages").mkdir()
    assert git_commit(tmp_path / "site-packages") is None
