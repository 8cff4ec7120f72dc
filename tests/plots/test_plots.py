"""The pictures, read back as pixels: size, colours that must or must not be there, names no font can draw."""

import math
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread
from pictures import noise

from beamclip.errors import InputError
from beamclip.plots import curves, style
from beamclip.plots.comparison import plot_predictions, plot_similarity
from beamclip.plots.contexts import (
    ContextEffect,
    MovedPair,
    context_figures,
    plot_contexts,
    read_contexts,
    write_contexts,
)
from beamclip.plots.curves import plot_curves
from beamclip.plots.sheet import make_sheet, read_sheet, write_sheet
from beamclip.plots.similarity import (
    Similarity,
    grouped_classes,
    ordered_similarity,
    read_similarity,
    write_similarity,
)
from beamclip.plots.style import drawable_text
from beamclip.plots.svg import svg_element

Pixels = npt.NDArray[np.float64]
FULL = {
    "loss": 2.0,
    "loss/csm": 1.5,
    "loss/feature": 0.5,
    "lr": 1e-3,
    "grad_norm": 0.7,
    "images_per_second": 900.0,
    "data_wait_share": 0.03,
}


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def read(path: Path) -> Pixels:
    assert path.read_bytes().startswith(b"\x89PNG")
    return imread(path)[..., :3].astype(float)


def share(pixels: Pixels, colour: str | tuple[float, ...]) -> float:
    """Part of the pixels within rounding of a colour, 0..1."""
    if isinstance(colour, str):
        colour = tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return float((np.abs(pixels - np.array(colour[:3])).max(axis=-1) < 0.02).mean())


def greenish(pixels: Pixels) -> float:
    """Part of the pixels that are clearly more green than red."""
    return float((pixels[..., 1] - pixels[..., 0] > 0.15).mean())


def history(records: int) -> list[dict[str, float]]:
    return [{"step": 10.0 * i, **{k: v * (1 + 1 / (i + 1)) for k, v in FULL.items()}} for i in range(records)]


@pytest.mark.slow
@pytest.mark.parametrize("records", [1, 2, 30, 200])
def test_curves_have_a_panel_for_each_quantity(records: int, tmp_path: Path) -> None:
    out = plot_curves(history(records), tmp_path / "plots" / "curves.png")
    pixels = read(out)
    assert out == tmp_path / "plots" / "curves.png"
    assert pixels.shape[1] == round(3 * 4.2 * 120)
    assert pixels.shape[0] == round((3 * 2.6 + 0.3) * 120)
    assert share(pixels, style.BLUE) > 1e-5
    assert share(pixels, style.ORANGE) > 1e-5


def test_quantities_that_no_record_holds_get_no_panel(tmp_path: Path) -> None:
    pixels = read(
        plot_curves([{"step": i, "loss": 1.0 / (i + 1)} for i in range(9)], tmp_path / "curves.png")
    )
    assert pixels.shape[:2] == (round(2.9 * 120), round(4.2 * 120))
    assert share(pixels, style.BLUE) > 1e-5
    assert share(pixels, style.ORANGE) == 0


@pytest.mark.slow
def test_records_with_missing_and_infinite_values_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    records = history(60)
    del records[3]["grad_norm"], records[5]["loss"]
    records[7]["loss"] = math.nan
    records[8]["loss/csm"] = math.inf
    records.append({"step": 600.0, "note": 1.0})
    assert share(read(plot_curves(records, tmp_path / "curves.png")), style.BLUE) > 1e-4


def test_a_quantity_that_was_never_finite_leaves_an_empty_panel(tmp_path: Path) -> None:
    records: list[dict[str, float]] = [{"step": i, "loss": math.nan} for i in range(50)]
    assert share(read(plot_curves(records, tmp_path / "curves.png")), style.BLUE) == 0


def test_an_empty_history_is_a_picture_too(tmp_path: Path) -> None:
    pixels = read(plot_curves([], tmp_path / "curves.png"))
    assert 0 < (pixels < 0.6).mean() < 0.1


def test_records_are_ordered_by_step_and_the_later_of_two_counts() -> None:
    records = [
        {"step": 20.0, "loss": 1.0},
        {"step": 10.0, "loss": 2.0},
        {"step": 20.0, "loss": 0.5},
        {"lr": 1.0},
    ]
    steps, values = curves._series(records, "loss")
    assert (steps.tolist(), values.tolist()) == ([10.0, 20.0], [2.0, 0.5])


def test_the_running_mean_of_a_line_is_the_line_and_gaps_are_left_out() -> None:
    line = np.arange(12.0)
    np.testing.assert_allclose(curves._running_mean(line, 2), line[2:-2])
    line[5] = math.nan
    expected = [np.nanmean(line[i - 2 : i + 3]) for i in range(2, 10)]
    np.testing.assert_allclose(curves._running_mean(line, 2), expected)
    assert np.isnan(curves._running_mean(np.full(5, math.nan), 1)).all()


def sheet(
    truth: str, best: int, out: Path, images: int = 1, names: tuple[str, ...] = ("cat", "dog")
) -> Pixels:
    """Grey images of `truth`, where both models prefer class `best`."""
    scores = np.zeros((images, len(names)))
    scores[:, best] = 9.0
    grey = np.full((images, 16, 16, 3), 128, dtype=np.uint8)
    models = {"teacher": scores, "student": scores}
    return read(plot_predictions(make_sheet(grey, [truth] * images, models, names, temperature=1.0), out))


def test_the_true_class_is_green_and_others_are_not(tmp_path: Path) -> None:
    names = ("cat", "dog", "cow", "owl")
    right = sheet("cat", 0, tmp_path / "right.png", names=names)
    wrong = sheet("ant", 0, tmp_path / "wrong.png", names=names)
    assert greenish(right) > 0.02
    assert greenish(wrong) == 0


def test_the_bar_of_the_true_class_grows_with_its_probability(tmp_path: Path) -> None:
    assert greenish(sheet("cat", 0, tmp_path / "sure.png")) > 5 * greenish(
        sheet("cat", 1, tmp_path / "doubt.png")
    )


@pytest.mark.slow
@pytest.mark.parametrize(("images", "rows", "columns"), [(1, 1, 1), (3, 2, 2), (12, 6, 2)])
def test_a_sheet_has_a_card_for_each_image(images: int, rows: int, columns: int, tmp_path: Path) -> None:
    pixels = sheet("cat", 0, tmp_path / "sheet.png", images)
    assert pixels.shape[:2] == (round((1.75 * rows + 0.45) * 120), round(7.2 * columns * 120))
    grey = (128 / 255,) * 3
    area = images * (0.74 * 1.75 * 120) ** 2 / (pixels.shape[0] * pixels.shape[1])
    assert share(pixels, grey) == pytest.approx(area, rel=0.05)


@pytest.mark.parametrize("side", [16, 300])
def test_images_keep_their_colours(side: int, tmp_path: Path) -> None:
    image = np.full((1, side, side, 3), (200, 30, 90), dtype=np.uint8)
    made = make_sheet(image, ["x"], {"model": np.zeros((1, 1))}, ["y"], temperature=1.0)
    pixels = read(plot_predictions(made, tmp_path / "sheet.png"))
    near = np.abs(pixels - np.array((200, 30, 90)) / 255).max(axis=-1) < 0.03
    assert near.mean() > 0.05


def test_probabilities_on_a_sheet_are_the_softmax_at_its_temperature() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 7))
    names = list("abcdefg")
    made = make_sheet(
        np.zeros((2, 8, 8, 3), np.uint8), ["c", "z"], {"student": scores}, names, temperature=0.5
    )
    for row, card in zip(scores, made.cards, strict=True):
        expected = torch.tensor(row / 0.5).softmax(0)
        best = expected.argsort(descending=True)[:3].tolist()
        guesses = card.answers[0].guesses
        assert [guess.name for guess in guesses] == [names[k] for k in best]
        assert [guess.probability for guess in guesses] == pytest.approx(expected[best].tolist())
    assert made.cards[0].answers[0].rank == 1 + (scores[0] > scores[0, 2]).sum()
    assert made.cards[1].answers[0].rank is None


def test_kept_numbers_are_read_back_as_they_were(tmp_path: Path) -> None:
    made = make_sheet(
        noise(8, 8)[None], ["a <b>"], {"student": np.eye(1, 2)}, ["a <b>", 'c "d"'], temperature=0.5
    )
    write_sheet(made, tmp_path / "predictions.json")
    assert read_sheet(tmp_path / "predictions.json") == made
    kept = ordered_similarity(list("abc"), np.eye(3), np.eye(3) / 2, np.eye(3))
    write_similarity(kept, tmp_path / "similarity.json")
    found = read_similarity(tmp_path / "similarity.json")
    assert found.names == kept.names
    np.testing.assert_allclose(found.student, kept.student)
    effect = ContextEffect("1 from file", (MovedPair("a", "b", 0.9, 0.5),), (0.9, 0.8), (0.5, 0.25))
    write_contexts(effect, tmp_path / "contexts.json")
    assert read_contexts(tmp_path / "contexts.json") == effect


@pytest.mark.parametrize("text", ["[]", "{}", '{"cards": [{"image": "bm8=", "truth": "a", "answers": []}]}'])
@pytest.mark.parametrize("read_kept", [read_sheet, read_similarity, read_contexts])
def test_files_that_hold_something_else_are_refused(read_kept: object, text: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"kept\.json"):
        read_kept(path)  # type: ignore[operator]


def test_predictions_with_counts_that_disagree_are_refused() -> None:
    images, scores = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"scores of \[2, 4\].*\[2, 3\]"):
        make_sheet(images, ["a", "b"], {"student": scores}, list("abcd"), temperature=1.0)
    with pytest.raises(ValueError, match="1 image or more"):
        make_sheet(images[:0], [], {"student": scores[:0]}, list("abc"), temperature=1.0)


def similarity(teacher: Pixels, student: Pixels, names: list[str]) -> Similarity:
    return Similarity(tuple(names), teacher, student)


def test_teacher_and_student_share_one_scale_of_colours(tmp_path: Path) -> None:
    low, high = np.full((4, 4), 0.1), np.full((4, 4), 0.9)
    pixels = read(plot_similarity(similarity(low, high, list("abcd")), tmp_path / "matrices.png"))
    third = pixels.shape[1] // 3
    assert share(pixels[:, :third], colormaps["viridis"](0.0)) > 0.2
    assert share(pixels[:, third:], colormaps["viridis"](1.0)) > 0.1
    assert share(pixels[:, -third:], colormaps["PuOr"](1.0)) > 0.2


def test_equal_matrices_show_no_difference(tmp_path: Path) -> None:
    same = np.random.default_rng(0).random((5, 5))
    pixels = read(plot_similarity(similarity(same, same, list("abcde")), tmp_path / "matrices.png"))
    assert share(pixels[:, -pixels.shape[1] // 3 :], colormaps["PuOr"](0.5)) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, 16, 30])
def test_matrices_of_any_size_stay_a_readable_picture(side: int, tmp_path: Path) -> None:
    teacher, student = np.random.default_rng(0).random((2, side, side))
    names = [f"name {i}" for i in range(side)]
    made = similarity(teacher, student, names)
    height, width = read(plot_similarity(made, tmp_path / "matrices.png")).shape[:2]
    assert 500 < height < 1200
    assert 1200 < width < 2700


def test_the_correlation_is_that_of_the_formula_and_defined_only_where_values_differ() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 4, 4))
    expected = np.mean((first - first.mean()) * (second - second.mean())) / (first.std() * second.std())
    made = similarity(first, second, list("abcd"))
    assert made.correlation == pytest.approx(expected)
    assert made.difference == pytest.approx(sum(abs(second - first).ravel()) / 16)
    assert similarity(first, np.ones((4, 4)), list("abcd")).correlation is None


def test_classes_are_ordered_along_a_chain_of_neighbours() -> None:
    # Unit vectors along a quarter of a circle, shuffled: the order along it is the only one without a jump.
    shuffled = np.random.default_rng(3).permutation(9)
    angles = shuffled * np.pi / 18
    anchors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    teacher = np.arange(81.0).reshape(9, 9)
    made = ordered_similarity([str(i) for i in shuffled], teacher, -teacher, anchors)
    order = list(map(int, made.names))
    assert order in (list(range(9)), list(range(8, -1, -1)))
    for row, name in enumerate(order):
        i = shuffled.tolist().index(name)
        assert made.teacher[row, row] == teacher[i, i]
        assert made.student[row].tolist() == [-teacher[i, shuffled.tolist().index(k)] for k in order]


def test_groups_are_far_apart_and_hold_the_nearest_classes() -> None:
    rng = np.random.default_rng(0)
    anchors = rng.normal(size=(40, 8))
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    chosen = grouped_classes(anchors, 3, 4)
    assert len(set(chosen)) == 12
    seeds = chosen[::4]
    cosines = anchors @ anchors.T
    for place in (1, 2):
        others = [max(cosines[i, k] for k in seeds[:place]) for i in range(40)]
        assert seeds[place] == int(np.argmin(others))
    free = [i for i in range(40) if i not in seeds]
    assert chosen[1:4] == sorted(free, key=lambda i: -cosines[0, i])[:3]
    assert grouped_classes(anchors[:12], 3, 4) == list(range(12))


def test_matrices_that_do_not_fit_the_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\].*teacher's is \[2, 3\], student's \[3, 2\]"):
        ordered_similarity(list("ab"), np.zeros((2, 3)), np.zeros((3, 2)), np.eye(2))
    with pytest.raises(ValueError, match="0 names"):
        ordered_similarity([], np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((0, 2)))


def test_a_loss_with_one_term_is_drawn_once_and_with_two_terms_three_times() -> None:
    def titles(**values: float) -> list[str]:
        record = {"step": 1.0, **{name.replace("_of_", "/"): value for name, value in values.items()}}
        return [panel.title for panel in curves.panels_of([[record]])]

    assert titles(loss=2.0, loss_of_csm=2.0) == ["Loss"]
    assert titles(loss=2.0, loss_of_csm=1.0) == ["Loss", "Loss term: csm"]
    assert titles(loss=2.0, loss_of_csm=1.5, loss_of_feature=0.5) == [
        "Loss",
        "Loss term: csm",
        "Loss term: feature",
    ]


def test_validation_has_curves_of_its_own_and_one_beside_the_loss() -> None:
    records = [{"step": 1.0, "loss": 2.0}, {"step": 1.0, "val_loss": 3.0, "val_zeroshot_top1": 0.25}]
    loss, accuracy = curves.panels_of([records])
    assert [line.key for line in loss.lines] == ["loss", "val_loss"]
    assert [line.key for line in accuracy.lines] == ["val_zeroshot_top1"]
    assert accuracy.title == "Held-out zero-shot top-1"


def test_cosines_that_hardly_differ_are_written_whole_along_the_axis(tmp_path: Path) -> None:
    near = tuple(0.99990 + i * 1e-6 for i in range(20))
    effect = ContextEffect("1 from file", (MovedPair("a", "b", 0.99991, 0.9999),), near, near)
    plot_contexts(effect, tmp_path / "contexts.png")
    assert read(tmp_path / "contexts.png").size
    for _, figure in context_figures(effect, 5):
        figure.draw_without_rendering()
        axis = figure.axes[0].xaxis
        assert axis.get_offset_text().get_text() == ""
        written = [float(label.get_text()) for label in axis.get_ticklabels()]
        np.testing.assert_allclose(written, axis.get_ticklocs(), atol=1e-8)


def test_a_figure_becomes_an_element_whose_ids_and_references_carry_its_name() -> None:
    (title, figure), *_ = curves.curve_figures([[{"step": i, "loss": 1.0 / (i + 1)} for i in range(5)]])
    text = svg_element(figure, "first", f"{title} <&")
    assert text.startswith('<svg role="img" aria-label="Loss &lt;&amp;"')
    assert ElementTree.fromstring(text).tag == "svg"
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert ids
    assert all(name.startswith("first-") for name in ids)
    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", text)) <= set(ids)
    assert "://" not in text
    assert ">Loss<" in text


ODD_NAMES = [
    "漢字 犬",
    "🦩",
    "a\u200db\ufe0f",
    "tab\tnew\nline",
    "$x_1$ and $",
    "عربي",
    "\x00\x07",
    "",
    "x" * 500,
]


@pytest.mark.slow
def test_names_that_no_font_can_draw_raise_no_warning(tmp_path: Path) -> None:
    sheet(ODD_NAMES[0], 0, tmp_path / "sheet.png", names=tuple(ODD_NAMES))
    for name in ODD_NAMES:
        sheet(name, 0, tmp_path / "sheet.png", names=(name, "other"))
    matrix = np.random.default_rng(0).random((len(ODD_NAMES), len(ODD_NAMES)))
    plot_similarity(similarity(matrix, matrix, ODD_NAMES), tmp_path / "matrices.png")
    plot_curves([{"step": 1.0, "loss": 1.0, "loss/漢$a$": 1.0}], tmp_path / "curves.png")
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png", "matrices.png", "curves.png"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("crane", "crane"),
        ("a long class name", "a long cla…"),
        ("twelve char", "twelve char"),
        ("ten words, eleven", "ten words,…"),
        ("two\n lines", "two lines"),
        ("5 $ a kg", r"5 \$ a kg"),
        ("\ue000 crane", "□ crane"),
        ("cra\U000e0067ne", "crane"),
    ],
)
def test_names_are_shortened_to_one_line_that_can_be_drawn(text: str, shown: str) -> None:
    assert drawable_text(text, 11) == shown


@pytest.mark.slow
def test_drawing_leaves_the_global_settings_as_they_were(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_curves(history(2), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before
