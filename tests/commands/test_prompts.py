"""Contexts as the commands use them: looked at, counted in captions, and refused before anything starts."""

import csv
import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.options import DistillConfig, PromptsConfig
from beamclip.commands.prompts import show_prompts
from beamclip.data.cooccurrence import words_of
from beamclip.models.clip import load_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.config import PromptConfig

NAMES = ("square", "circle", "triangle", "arrow", "star", "no such thing")
"""Of classes whose names stand in many captions of the corpus, but for the last."""


@pytest.fixture(scope="module")
def class_list(workspace) -> Path:
    path = workspace / "shapes.txt"
    path.write_text("\n".join(NAMES))
    return path


@pytest.fixture(scope="module")
def looked_at(ray_cluster, teacher, corpus, class_list, workspace) -> tuple[PromptsConfig, Path]:
    """Options, and what the command left: contexts from the captions of the corpus."""
    config = PromptsConfig(
        classes=class_list,
        teacher=str(teacher[0]),
        data=str(corpus.train),
        pairs=7,
        out=workspace / "prompts",
        prompts=PromptConfig(("photo",), context_source="captions", num_contexts=2),
    )
    show_prompts(config)
    return config, workspace / "prompts"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_prompts_are_written_bare_and_with_the_words_of_captions(looked_at, corpus):
    _, out = looked_at
    prompts = rows(out / "prompts.csv")
    bare = [row for row in prompts if row["num_contexts"] == "0"]
    assert [row["id"] for row in bare] == list(NAMES)
    assert bare[0]["prompt"] == "a photo of a square."
    with_contexts = [row for row in prompts if row["num_contexts"] == "2"]
    said = [row for row in with_contexts if "," in row["prompt"]]
    assert {row["name"] for row in said} >= {"square", "circle"}
    assert "no such thing" not in {row["name"] for row in said}
    captions = {word for path in sorted(corpus.train.glob("*.tar")) for word in caption_words_of(path)}
    for row in said:
        name, _, context = row["prompt"].removesuffix(".").partition(", ")
        assert name.endswith(row["name"])
        assert context in captions


def caption_words_of(tar: Path) -> set[str]:
    with tarfile.open(tar) as file:
        texts = [member for member in file if member.name.endswith(".txt")]
        return {word for text in texts for word in words_of(file.extractfile(text).read().decode())}


def test_pairs_carry_the_cosines_of_their_prompts_and_come_closest_first(looked_at, teacher):
    config, out = looked_at
    pairs = rows(out / "pairs.csv")
    assert len(pairs) == config.pairs
    bare = [float(row["cosine_bare"]) for row in pairs]
    assert bare == sorted(bare, reverse=True)
    assert any(row["cosine_contexts"] != row["cosine_bare"] for row in pairs)
    encoder = Teacher(load_clip(str(teacher[0])))
    for row in pairs:
        names = [row[name] for name in ("name_a", "name_b")]
        ends = encoder.encode_text([f"a photo of a{'n' * (name[0] == 'a')} {name}." for name in names])
        assert float(ends[0] @ ends[1]) == pytest.approx(float(row["cosine_bare"]), abs=1e-4)


def test_the_summary_compares_the_spread_of_both(looked_at):
    _, out = looked_at
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["command"], summary["status"]) == ("prompts", "finished")
    metrics = summary["metrics"]
    assert metrics["mean_cosine"] != metrics["bare_mean_cosine"]
    assert 1 <= metrics["bare_effective_rank"] <= 32
    nats = summary["stages"]["template_nats"]
    # Those of the options first, then the teacher's own, then the other sets.
    assert next(iter(nats)) == "photo"
    assert {"name", "ensemble", "symbol", "openai7"} < nats.keys()
    assert all(0 <= value <= math.log(len(NAMES)) for value in nats.values())
    assert (out / "plots" / "contexts.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "config.yaml").read_text())["prompts"]["context_source"] == "captions"


def test_captions_are_counted_once(looked_at, capsys):
    config, out = looked_at
    show_prompts(replace(config, out=out.parent / "prompts-again"))
    printed = capsys.readouterr().out
    assert "cached" in next(line for line in printed.splitlines() if line.startswith("contexts"))
    assert rows(out / "prompts.csv") == rows(out.parent / "prompts-again" / "prompts.csv")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--context-source", "hierachy", "--num-contexts", "1"], "Did you mean hierarchy"),
        (["--context-source", "file", "--num-contexts", "1"], "classes carry `contexts`"),
        (["--context-source", "wordnet", "--num-contexts", "1"], "wordnet"),
        (["--num-contexts", "1"], "context_source is none"),
    ],
)
def test_contexts_that_cannot_be_had_are_refused_before_anything_starts(
    flags, expected, teacher, corpus, tmp_path, capsys
):
    given = ["--data", str(corpus.train), "--teacher", str(teacher[0]), "--classes", str(corpus.classes)]
    given += ["--batch-size", "20"]
    out = tmp_path / "run"
    assert run_command(DistillConfig, distill, "", argv=[*given, "--out", str(out), *flags]) == 2
    assert expected in capsys.readouterr().err
    assert not (out / "config.yaml").exists()
