"""What a sweep leaves: trials written down and read again, the table, the best options, the pictures."""

import csv
from dataclasses import replace

import pytest
from PIL import Image

from beamclip.commands.options import DistillConfig
from beamclip.config import read_config
from beamclip.sweep.report import best_of, table_rows, write_report
from beamclip.sweep.space import Range, applied, parse_space
from beamclip.sweep.trial import Score, Trial, ranked, read_trials, write_trial

BASE = DistillConfig(data=("shards",), teacher="open_clip:ViT-B-32/openai")
SPACE = parse_space(["tau_teacher=0.1,0.2", "num_contexts=0,1,2", "lr=1e-4..1e-2"], BASE)


def trial(number: int, status: str, *scores: float, tau: float = 0.1, contexts: int = 0) -> Trial:
    return Trial(
        number=number,
        settings={"tau_teacher": tau, "num_contexts": contexts, "lr": 0.001 * (number + 1)},
        status=status,  # type: ignore[arg-type]
        steps=30,
        scores=tuple(Score(10 * i, top1, min(1.0, 2 * top1)) for i, top1 in enumerate(scores, start=1)),
        seconds=12.34,
        problem="the loss is NaN" if status == "failed" else None,
    )


TRIALS = [
    trial(0, "finished", 0.1, 0.2, 0.3),
    trial(1, "stopped", 0.35, tau=0.2, contexts=1),
    trial(2, "finished", 0.1, 0.15, 0.4, contexts=2),
    trial(3, "failed", tau=0.2),
    trial(4, "waiting"),
]


def test_trials_are_read_as_they_were_written(tmp_path):
    for each in reversed(TRIALS):
        write_trial(tmp_path, each)
    write_trial(tmp_path, replace(TRIALS[4], status="running"))
    assert read_trials(tmp_path) == {**dict(enumerate(TRIALS)), 4: replace(TRIALS[4], status="running")}
    assert list(read_trials(tmp_path)) == [0, 1, 2, 3, 4]


def test_those_at_their_end_come_first_and_the_best_of_them_is_the_best():
    assert [each.number for each in ranked(TRIALS)] == [2, 0, 1, 3, 4]
    assert best_of(TRIALS) == TRIALS[2]
    assert best_of(TRIALS[1:2]) == TRIALS[1]
    assert best_of(TRIALS[3:]) is None
    assert [each.done for each in TRIALS] == [True, True, True, False, False]


def test_the_table_and_the_best_options_are_files_that_can_be_read(tmp_path):
    written = write_report(tmp_path, TRIALS, SPACE, BASE)
    assert {path.name for path in written} == {
        "trials.csv",
        "best.yaml",
        "heat_map.png",
        "parallel.png",
        "learning.png",
    }
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["002", "000", "001", "003", "004"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[0]["zeroshot_top1"]) == 0.4
    assert (rows[0]["num_contexts"], rows[3]["problem"], rows[4]["zeroshot_top1"]) == (
        "2",
        "the loss is NaN",
        "",
    )
    best = read_config(DistillConfig, tmp_path / "best.yaml")
    assert best == applied(BASE, TRIALS[2].settings)
    head, first, *_ = table_rows(TRIALS, SPACE)
    assert head[:4] == ["trial", "tau_teacher", "num_contexts", "lr"]
    assert first == ["002", "0.1", "2", "0.003", "40.0 %", "80.0 %", "30", "12", ""]


def test_pictures_show_every_scored_trial(tmp_path):
    write_report(tmp_path, TRIALS, SPACE, BASE)
    for name in ("heat_map", "parallel", "learning"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 300, name
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20, name


@pytest.mark.parametrize(
    ("trials", "left"),
    [
        (TRIALS[3:], {"trials.csv"}),
        (TRIALS[:1], {"trials.csv", "best.yaml", "parallel.png", "learning.png", "heat_map.png"}),
    ],
)
def test_what_there_is_nothing_to_draw_of_is_left_out(trials, left, tmp_path):
    assert {path.name for path in write_report(tmp_path, trials, SPACE, BASE)} == left


def test_one_option_makes_no_heat_map(tmp_path):
    space = {"lr": Range(1e-4, 1e-2), "tau_teacher": SPACE["tau_teacher"]}
    assert "heat_map.png" not in {path.name for path in write_report(tmp_path, TRIALS, space, BASE)}
