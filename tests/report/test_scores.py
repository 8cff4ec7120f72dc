"""Bars and tables of a report against formulas and scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run
from sklearn.metrics import confusion_matrix

from beamclip.evaluation.results import Facts, Scores
from beamclip.report.classes import BINS, named_too_often, reliability_bins, worst_rows
from beamclip.report.costs import cost_table, duration_text
from beamclip.report.run_files import read_run, read_runs
from beamclip.report.scores import metric_title, score_section


def scores(images: int, classes: int, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    predicted = rng.integers(0, classes, (images, 5)).astype(np.int32)
    right = rng.random(images) < 0.5
    predicted[right, 0] = labels[right]
    names = tuple(f"class {k}" for k in range(classes))
    facts = Facts("model", "data", ("zeroshot",), names, names)
    keys = [str(i) for i in range(images)]
    ranks = {"zeroshot": (predicted[:, 0] != labels).astype(np.int32)}
    return Scores(facts, keys, labels, predicted, rng.random(images).astype(np.float32), ranks=ranks)


def test_bars_and_whiskers_are_shares_of_an_axis_that_holds_them(tmp_path: Path) -> None:
    section = score_section([read_run(write_run(tmp_path / "run"))])
    assert section
    (task,) = section.tasks
    assert task.end == "100 %"
    top1, top5 = task.figures
    assert [(bar.label, bar.width) for bar in top1.bars] == [("student", 50.0), ("teacher", 62.5)]
    assert (top1.bars[0].low, top1.bars[0].span) == (40.0, 20.0)
    assert top1.bars[0].text == "50.0 % (40.0 to 60.0)"
    assert top1.bars[1].low is None
    assert top5.bars[0].text == "75.0 %"
    assert section.others == (("loss", "1.25"),)


def test_a_comparison_shows_differences_and_verdicts(tmp_path: Path) -> None:
    figures = {
        "zeroshot_top1": {"value": 0.025, "low": 0.01, "high": 0.04, "verdict": "better"},
        "agreement_kl": {"value": -0.5, "low": -1.0, "high": 0.25, "verdict": "cannot tell"},
    }
    stages = {"against": {"run": "runs/other", "figures": figures}}
    section = score_section([read_run(write_run(tmp_path / "run", stages=stages))])
    assert section
    assert section.against
    assert section.against.rows == (
        ("zeroshot top1", "+2.5 points (+1.0 to +4.0)", "better"),
        ("agreement kl", "-0.5 (-1 to +0.25)", "cannot tell"),
    )


def test_small_scores_get_a_shorter_axis(tmp_path: Path) -> None:
    run = read_run(
        write_run(tmp_path / "run", metrics={"zeroshot_top1": 0.07, "knn10_top1": 0.3}, intervals={})
    )
    section = score_section([run])
    assert section
    assert [(task.title, task.end) for task in section.tasks] == [
        ("Zero-shot", "10 %"),
        ("Nearest neighbours", "50 %"),
    ]
    assert section.tasks[0].figures[0].bars[0].width == 70.0


def test_figures_of_several_data_sets_are_tasks_of_their_own(tmp_path: Path) -> None:
    metrics = {"a/zeroshot_top1": 0.5, "b_zeroshot_top1": 0.25, "b/effective_robustness_zeroshot_top1": -0.1}
    section = score_section([read_run(write_run(tmp_path / "run", metrics=metrics, intervals={}))])
    assert section
    assert [task.title for task in section.tasks] == ["Zero-shot: a", "Zero-shot: b"]
    assert section.others == (("b/effective robustness zeroshot top-1", "-10.0 points"),)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("zeroshot_top1", "top-1"),
        ("knn20_top1", "top-1, 20 neighbours"),
        ("retrieval_i2t_r5", "image to text, R@5"),
        ("retrieval_t2i_r10", "text to image, R@10"),
        ("agreement_top1", "top-1"),
        ("zeroshot_mean_class_top1", "top-1, mean over the classes"),
    ],
)
def test_figures_have_readable_names(name: str, title: str) -> None:
    assert metric_title(name) == title


def test_worst_classes_are_those_of_the_confusion_matrix() -> None:
    scored = scores(400, 12)
    assert scored.labels is not None
    assert scored.predicted is not None
    matrix = confusion_matrix(scored.labels, scored.predicted[:, 0], labels=range(12))
    rows = worst_rows(scored, most=12)
    assert len(rows) == 12
    assert [row.accuracy for row in rows] == sorted(row.accuracy for row in rows)
    wrong = matrix - np.diag(np.diag(matrix))
    often = named_too_often(scored, most=3)
    assert [number for _, number, _ in often] == sorted(wrong.sum(axis=0), reverse=True)[:3]
    assert all(own == matrix[int(name.split()[1])].sum() for name, _, own in often)
    for row in rows:
        counts = matrix[int(row.name.split()[1])].copy()
        k = int(row.name.split()[1])
        assert (row.right, row.images) == (counts[k], counts.sum())
        counts[k] = 0
        assert [number for _, number in row.confusions] == sorted(counts, reverse=True)[:3]
        assert all(counts[int(name.split()[1])] == number for name, number in row.confusions)


def test_reliability_is_the_accuracy_of_images_sorted_by_probability() -> None:
    scored = scores(1000, 5)
    assert scored.labels is not None
    assert scored.predicted is not None
    assert scored.probability is not None
    found = sorted(zip(scored.probability, scored.predicted[:, 0] == scored.labels, strict=True))
    bins = reliability_bins(scored)
    for i in range(BINS):
        part = found[100 * i : 100 * (i + 1)]
        assert bins.confidence[i] == pytest.approx(sum(float(p) for p, _ in part) / 100)
        assert bins.accuracy[i] == pytest.approx(sum(bool(r) for _, r in part) / 100)


def test_costs_are_the_hours_of_all_workers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages={"parameters": {"student": {"image": 2_000_000}}})
    table = cost_table(read_runs([run]))
    assert table
    rows = dict(table.rows)
    # Sixty windows of a minute, by two workers.
    assert rows["reserved for training"] == ("2 hours of a CPU worker",)
    assert rows["wall time"] == ("1 min 30 s",)
    assert rows["student"] == ("image tower 2.00 M parameters, 8.0 MB",)
    assert "teacher" not in rows
    assert [duration_text(s) for s in (8.2, 751, 3720)] == ["8.2 s", "12 min 31 s", "1 h 2 min"]


def test_a_loss_against_the_baseline_is_no_bar(tmp_path: Path) -> None:
    name = "sketches/effective_robustness_zeroshot_top1"
    run = write_run(tmp_path / "run", metrics={name: -0.04}, intervals={name: (-0.06, -0.02)})
    section = score_section([read_run(run)])
    assert section
    assert section.tasks == ()
    assert section.others[0][1] == "-4.0 points (-6.0 to -2.0)"


def test_a_difference_without_an_interval_is_shown(tmp_path: Path) -> None:
    figures = {"agreement_kl": {"value": 0.5, "low": None, "high": None, "verdict": "cannot tell"}}
    run = write_run(tmp_path / "run", stages={"against": {"run": "runs/other", "figures": figures}})
    section = score_section([read_run(run)])
    assert section
    assert section.against
    assert section.against.rows == (("agreement kl", "+0.5", "cannot tell"),)
