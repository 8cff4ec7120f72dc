"""`beamclip report`, and the reports that other commands leave, on the small corpus."""

from pathlib import Path

import pytest
from html_pages import PageReader

from beamclip.commands import report as report_module
from beamclip.commands.main import main
from beamclip.summary import read_summary


def test_training_leaves_a_report_that_its_summary_names(teacher) -> None:
    folder, summary = teacher
    assert summary.paths["report"] == "report.html"
    page = PageReader((folder / "report.html").read_text())
    for text in ("beamclip pretrain", "zero-shot top-1", "Learning rate", "Shards, by ingest", "URL list"):
        assert text.lower() in page.text.lower()


def test_a_report_is_made_later_from_a_copy_of_the_folder(corpus, teacher, tmp_path, capsys) -> None:
    folder, _ = teacher
    copy = tmp_path / "brought"
    copy.mkdir()
    for name in ("config.yaml", "summary.json", "metrics.jsonl"):
        (copy / name).write_bytes((folder / name).read_bytes())
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(copy / "report.html")
    assert main(["report", str(copy), str(folder), "--out", str(tmp_path / "both.html")]) == 0
    text = PageReader((tmp_path / "both.html").read_text()).text
    assert "brought" in text
    assert "teacher" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no run is given"),
        (["none-there"], "no run there (no such folder)"),
        (["."], "no run there (config.yaml is missing)"),
    ],
)
def test_wrong_input_is_one_line(words, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_shards_have_no_report_and_say_so(corpus, capsys) -> None:
    assert main(["report", str(corpus.train)]) == 2
    assert "beamclip ingest, which has no report" in capsys.readouterr().err


def test_a_report_that_fails_costs_no_scores(teacher, tmp_path, monkeypatch, capsys) -> None:
    _, summary = teacher

    def fail(*arguments: object) -> Path:
        raise OSError("the disk is full")

    monkeypatch.setattr(report_module, "write_reports", fail)
    written = report_module.write_summary_and_report(tmp_path, summary)
    assert "could not be written: the disk is full" in capsys.readouterr().out
    assert read_summary(tmp_path).metrics == written.metrics == summary.metrics
