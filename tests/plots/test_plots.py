"""The pictures, read back as pixels: size, colours that must or must not be there, names no font can draw."""

import math
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread

from beamclip.plots import comparison, curves, style
from beamclip.plots.comparison import plot_predictions, plot_similarity
from beamclip.plots.curves import plot_curves
from beamclip.plots.style import drawable_text

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
    scores = torch.zeros(images, len(names))
    scores[:, best] = 9.0
    grey = torch.full((images, 3, 16, 16), 128, dtype=torch.uint8)
    return read(plot_predictions(grey, [truth] * images, scores, scores, names, out))


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
    image = torch.tensor([200, 30, 90], dtype=torch.uint8)[None, :, None, None].expand(1, 3, side, side)
    out = plot_predictions(image, ["x"], torch.zeros(1, 1), torch.zeros(1, 1), ["y"], tmp_path / "sheet.png")
    assert share(read(out), (200 / 255, 30 / 255, 90 / 255)) > 0.05


def test_predictions_with_counts_that_disagree_are_refused(tmp_path: Path) -> None:
    images, scores = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"scores of \[2, 4\].*\[2, 3\]"):
        plot_predictions(images, ["a", "b"], scores, scores, list("abcd"), tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="1 image or more"):
        plot_predictions(images[:0], [], scores[:0], scores[:0], list("abc"), tmp_path / "sheet.png")


def test_teacher_and_student_share_one_scale_of_colours(tmp_path: Path) -> None:
    low, high = torch.full((4, 4), 0.1), torch.full((4, 4), 0.9)
    pixels = read(plot_similarity(low, high, list("abcd"), list("wxyz"), tmp_path / "matrices.png"))
    third = pixels.shape[1] // 3
    assert share(pixels[:, :third], colormaps["viridis"](0.0)) > 0.2
    assert share(pixels[:, third:], colormaps["viridis"](1.0)) > 0.1
    assert share(pixels[:, -third:], colormaps["PuOr"](1.0)) > 0.2


def test_equal_matrices_show_no_difference(tmp_path: Path) -> None:
    same = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    pixels = read(plot_similarity(same, same, list("abcde"), list("xyz"), tmp_path / "matrices.png"))
    assert share(pixels[:, -pixels.shape[1] // 3 :], colormaps["PuOr"](0.5)) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (130, 60)])
def test_matrices_of_any_size_stay_a_readable_picture(shape: tuple[int, int], tmp_path: Path) -> None:
    rows, columns = ([f"name {i}" for i in range(n)] for n in shape)
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.rand(shape, generator=generator) for _ in range(2))
    height, width = read(plot_similarity(teacher, student, rows, columns, tmp_path / "matrices.png")).shape[
        :2
    ]
    assert 500 < height < 1200
    assert 1200 < width < 2700


def test_the_correlation_is_that_of_numpy_and_defined_only_where_values_differ() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 4, 3))
    expected = np.mean((first - first.mean()) * (second - second.mean())) / (first.std() * second.std())
    assert f"{expected:.3f}" in comparison._correlation(first, second)
    assert "undefined" in comparison._correlation(first, np.ones((4, 3)))


def test_matrices_that_do_not_fit_the_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\]; teacher's is \[2, 3\], student's \[3, 2\]"):
        plot_similarity(torch.rand(2, 3), torch.rand(3, 2), list("ab"), list("xyz"), tmp_path / "m.png")
    with pytest.raises(ValueError, match="0 images"):
        plot_similarity(torch.rand(0, 3), torch.rand(0, 3), [], list("xyz"), tmp_path / "m.png")


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
    matrix = torch.rand(len(ODD_NAMES), len(ODD_NAMES))
    plot_similarity(matrix, matrix, ODD_NAMES, ODD_NAMES, tmp_path / "matrices.png")
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
