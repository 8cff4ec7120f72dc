"""What the studies stand on: noise that is exact, results that are reused only where they fit, kept words."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The folder of a program is on its path when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def pairs(count: int):
    from support.emoji_pairs import Pairs

    images = []
    for i in range(count):
        encoded = io.BytesIO()
        Image.new("RGB", (32, 32), (7 * i % 256, 50, 3 * i % 256)).save(encoded, "png")
        images.append(encoded.getvalue())
    names = [f"thing {i}" for i in range(count)]
    return Pairs(names, images, names, list(range(count)))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 1.0])
def test_exactly_the_share_of_the_captions_moves_to_other_images(share: float) -> None:
    from support.emoji_pairs import shuffle_captions

    clean = pairs(50)
    noisy = shuffle_captions(clean, share, seed=3)
    moved = sum(before != after for before, after in zip(clean.captions, noisy.captions, strict=True))
    assert moved == round(50 * share)
    assert sorted(noisy.captions) == sorted(clean.captions)
    assert noisy.captions == shuffle_captions(clean, share, seed=3).captions
    if share:
        assert noisy.captions != shuffle_captions(clean, share, seed=4).captions


@pytest.mark.slow
def test_a_result_is_reused_under_its_own_settings_alone(tmp_path: Path) -> None:
    from support.pretraining import Recipe
    from support.trials import Trial, run_trials

    trial = Trial("arm", Recipe("nano-resnet10t"), seed=0, noise=0.4)
    kept_result = {"zeroshot_top1": 0.25, "trial": trial.settings}
    (tmp_path / trial.file_name).write_text(json.dumps(kept_result))
    # Nothing is left to run: a run in another process would fail on this emoji folder.
    kept = run_trials([trial], _never, tmp_path / "no emoji", tmp_path, jobs=1)
    assert [result["zeroshot_top1"] for result in kept] == [0.25]
    other = Trial("arm", Recipe("nano-resnet10t", batch_size=64), seed=0, noise=0.4)
    with pytest.raises(RuntimeError, match="is run"):
        run_trials([other], _never, tmp_path / "no emoji", tmp_path, jobs=1)


def test_options_of_self_distillation_do_not_matter_to_other_objectives() -> None:
    from support.pretraining import Recipe
    from support.trials import Trial

    from beamclip.losses.config import PsdConfig

    for objective in ("clip", "psd"):
        some, other = (
            Trial("arm", Recipe("nano-resnet10t", objective, PsdConfig(psd_end=end)), 0) for end in (0.3, 0.6)
        )
        assert (some.settings == other.settings) == (objective == "clip")


def _never(*_: object) -> dict[str, float]:
    raise RuntimeError("is run")


@pytest.mark.slow
def test_a_training_on_pairs_in_memory_learns_them() -> None:
    from support.pretraining import Recipe, score, train

    from beamclip.data.config import Augmentation
    from beamclip.training.config import OptimConfig

    threads = torch.get_num_threads()
    plain = Augmentation(crop_scale_min=1.0, rotate=0.0, translate=0.0, zoom=0.0, jitter=0.0)
    recipe = Recipe("nano-resnet10t", batch_size=8, optim=OptimConfig(steps=60, lr=2e-3), augmentation=plain)
    few = pairs(8)
    clip, info = train(recipe, few, seed=0)
    scores = score(clip, few, few.captions)
    assert info["steps"] == 60
    assert scores["zeroshot_top1"] > 0.7
    assert scores["retrieval_i2t_r1"] == scores["zeroshot_top1"]
    assert 0.0 <= scores["modality_gap"] <= 2.0
    assert torch.get_num_threads() == threads


def test_words_around_the_figures_of_a_report_stay(tmp_path: Path) -> None:
    from support.reports import write_figures

    report = tmp_path / "docs" / "support.md"
    write_figures(report, "A study", "first figures")
    report.write_text(report.read_text().replace("# A study\n", "# A study\n\nWhy.\n") + "\nWhat it means.\n")
    write_figures(report, "A study", "second figures")
    text = report.read_text()
    assert "first figures" not in text
    assert text.index("Why.") < text.index("second figures") < text.index("What it means.")


def test_spread_is_left_out_where_there_is_none() -> None:
    from support.reports import plus_minus

    assert plus_minus(0.1234, 0.005) == "12.3 ± 0.5"
    assert plus_minus(0.1234, float(np.nan)) == "12.3"


def test_a_difference_has_the_interval_and_p_value_of_the_paired_t_test() -> None:
    """Against the textbook's formulas: mean 1.2, deviation 0.8367, t of four degrees of freedom 2.776."""
    from support.paired import difference

    found = difference([0.31, 0.33, 0.30, 0.32, 0.35], [0.30, 0.31, 0.30, 0.30, 0.34])
    assert found.mean == pytest.approx(0.012)
    assert found.half == pytest.approx(2.776 * 0.008367 / 5**0.5, rel=1e-3)
    assert found.p == pytest.approx(0.0327, abs=5e-4)
    assert found.text == "+1.2 (0.2 to 2.2)"
    assert difference([0.5, 0.5], [0.5, 0.5]).p == 1.0
    with pytest.raises(ValueError, match="two pairs or more"):
        difference([0.5], [0.4])


def test_holm_multiplies_the_smallest_p_value_by_the_number_of_comparisons() -> None:
    from support.paired import holm

    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])


def test_an_epoch_of_a_pool_sees_each_image_once_and_every_epoch_another_view() -> None:
    from support.view_pool import ViewPool, pool_batches

    views, number = 3, 10
    pixels = torch.arange(views * number, dtype=torch.uint8).reshape(views, number, 1, 1, 1)
    units = torch.zeros(views, number, 2)
    units[..., 0] = torch.arange(views)[:, None]
    units[..., 1] = torch.arange(number)
    batches = pool_batches(ViewPool(pixels, units, units[0]), batch_size=5, seed=1)
    epochs = [torch.cat([next(batches).embeddings[0] for _ in range(2)]).long() for _ in range(views)]
    assert all(sorted(seen[:, 1].tolist()) == list(range(number)) for seen in epochs)
    seen = torch.cat(epochs)
    assert len({(view, row) for view, row in seen.tolist()}) == views * number
    first = next(pool_batches(ViewPool(pixels, units, units[0]), batch_size=4, seed=1))
    shown = first.pixels.flatten().long()
    assert torch.equal(shown, first.embeddings[0][:, 0].long() * number + first.embeddings[0][:, 1].long())
    assert first.global_size == 4
