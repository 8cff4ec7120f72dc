"""`beamclip report`, and the reports that other commands leave, on the small corpus."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from html_pages import PageReader

from beamclip.cluster.config import WorkersConfig
from beamclip.commands import report as report_module
from beamclip.commands.anchors import class_anchors
from beamclip.commands.context_effect import class_labels, effect_on_anchors
from beamclip.commands.evaluate import evaluate
from beamclip.commands.main import main
from beamclip.commands.options import EvaluateConfig
from beamclip.commands.retrieval_examples import SIDE, read_images
from beamclip.data.listing import list_labelled
from beamclip.data.shards import Columns, iterate_rows
from beamclip.data.transforms import load_evaluation_image
from beamclip.models.clip import load_clip
from beamclip.plots.retrieval import read_retrieval
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import load_classes
from beamclip.prompts.config import PromptConfig
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


def test_an_evaluation_shows_images_and_what_retrieval_finds(corpus, teacher, tmp_path) -> None:
    folder, _ = teacher
    config = EvaluateConfig(
        model=str(folder),
        data=(str(corpus.test),),
        classes=corpus.classes,
        tasks=("zeroshot", "retrieval"),
        workers=WorkersConfig(num_workers=0),
        out=tmp_path / "scores",
    )
    summary = evaluate(config)
    assert summary.paths["report"] == "report.html"
    page = (tmp_path / "scores" / "report.html").read_text()
    for title in ("Scores", "Images", "Worst classes", "Retrieval", "Lineage", "Samples"):
        assert f"<h2>{title}</h2>" in page
    assert PageReader(page).text.count("image to text, R@") == 3
    examples = read_retrieval(tmp_path / "scores" / "plots" / "retrieval.json")
    assert examples.images == 60
    assert len(examples.by_image) == len(examples.by_text) == 6


def test_the_effect_of_contexts_is_the_cosine_of_prompts_with_and_without(corpus, teacher, tmp_path) -> None:
    clip, classes = load_clip(str(teacher[0])), load_classes(corpus.classes)[:40]
    config = PromptConfig(templates=("name",), context_source="hierarchy", num_contexts=1)
    workers = WorkersConfig(num_workers=0)
    anchors = class_anchors(classes, config, {}, clip, workers, tmp_path)
    effect = effect_on_anchors(classes, config, anchors, clip, tmp_path)

    def cosines(config: PromptConfig) -> torch.Tensor:
        (prompts,) = zip(*class_prompts(classes, config, {}), strict=True)
        with torch.no_grad():
            units = F.normalize(clip.model.encode_text(clip.tokenizer(list(prompts))), dim=1)
        return (units @ units.T).fill_diagonal_(-1)

    bare, chosen = cosines(replace(config, num_contexts=0)), cosines(config)
    assert effect.bare == pytest.approx(bare.max(dim=1).values.tolist(), abs=1e-5)
    assert effect.with_contexts == pytest.approx(chosen.max(dim=1).values.tolist(), abs=1e-5)
    first = effect.pairs[0]
    assert first.bare == pytest.approx(bare.max().item(), abs=1e-5)
    labels = class_labels(classes)
    a, b = labels.index(first.first), labels.index(first.second)
    assert first.with_contexts == pytest.approx(chosen[a, b].item(), abs=1e-5)


def test_images_are_found_again_though_others_were_lost(corpus) -> None:
    shards = list_labelled(str(corpus.test))
    rows = [row for shard in shards for row in iterate_rows(shard, Columns(), range(shard.samples))]
    kept = [row for place, row in enumerate(rows) if place not in (3, 4, 40)]
    found = read_images(str(corpus.test), [row["key"] for row in kept], [0, 20, 50], labelled=True)
    assert sorted(found) == [0, 20, 50]
    for place, pixels in found.items():
        assert (pixels == load_evaluation_image(kept[place]["image"], SIDE)).all()
