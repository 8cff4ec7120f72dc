"""A model is fine-tuned from another one's weights, and averaged with it."""

import pytest
import torch

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.main import main
from beamclip.commands.options import InterpolateConfig, PretrainConfig
from beamclip.commands.pretrain import pretrain
from beamclip.config import read_config
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.models.clip import load_clip
from beamclip.summary import read_summary
from beamclip.training.config import OptimConfig


def config(teacher, corpus, **changes) -> PretrainConfig:
    options = {
        "data": (str(corpus.train),),
        "init": str(teacher[0]),
        "stream": StreamConfig(batch_size=32),
        "optim": OptimConfig(steps=2, lr=1e-4),
        "workers": WorkersConfig(num_workers=0),
    }
    return PretrainConfig(**{**options, **changes})


@pytest.fixture(scope="module")
def fine_tuned(teacher, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    pretrain(config(teacher, corpus, out=out))
    return out


def test_a_fine_tuning_begins_with_the_weights_config_and_pixels_of_its_model(teacher, fine_tuned):
    before, after = load_clip(str(teacher[0])), load_clip(str(fine_tuned))
    assert after.model_cfg == before.model_cfg
    assert after.preprocess_cfg == before.preprocess_cfg
    pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
    moved = max(float((one - other).detach().abs().max()) for one, other in pairs)
    assert 0 < moved < 1e-3
    assert read_config(PretrainConfig, fine_tuned / "config.yaml").model is None
    card = (fine_tuned / "model" / "README.md").read_text()
    assert "# A CLIP model, fine-tuned with beamclip" in card
    assert f"- init: {teacher[0]}" in card


def test_averages_are_models_whose_cards_name_both_parents(teacher, fine_tuned, tmp_path):
    words = ["--model", str(teacher[0]), "--towards", str(fine_tuned), "--out", str(tmp_path / "between")]
    assert main(["interpolate", *words, "--alpha", "0", "0.5"]) == 0
    summary = read_summary(tmp_path / "between")
    assert summary.paths == {"alpha 0": "alpha-0", "alpha 0.5": "alpha-0.5"}
    halfway = load_clip(str(tmp_path / "between" / "alpha-0.5"))
    parents = [load_clip(str(each)) for each in (teacher[0], fine_tuned)]
    sums = zip(*(clip.model.parameters() for clip in parents), strict=True)
    for own, (one, other) in zip(halfway.model.parameters(), sums, strict=True):
        torch.testing.assert_close(own, (one + other) / 2)
    card = (tmp_path / "between" / "alpha-0.5" / "README.md").read_text()
    for line in (f"- model: {teacher[0]}", f"- towards: {fine_tuned}", "- alpha: 0.5", "- merge"):
        assert line in card
    assert load_clip(str(tmp_path / "between" / "alpha-0")).fingerprint == parents[0].fingerprint
    assert read_config(InterpolateConfig, tmp_path / "between" / "config.yaml").towards == str(fine_tuned)


def test_one_average_is_the_model_of_its_run_and_replaces_none_of_another(
    teacher, fine_tuned, tmp_path, capsys
):
    words = ["--model", str(teacher[0]), "--towards", str(fine_tuned), "--out"]
    for _ in range(2):
        assert main(["interpolate", *words, str(tmp_path / "half")]) == 0
    summary = read_summary(tmp_path / "half")
    assert summary.paths == {"alpha 0.5": "model"}
    assert (
        load_clip(str(tmp_path / "half")).fingerprint
        == load_clip(str(tmp_path / "half" / "model")).fingerprint
    )
    before = load_clip(str(fine_tuned)).fingerprint
    assert main(["interpolate", *words, str(fine_tuned)]) == 2
    assert "holds the results of another command" in capsys.readouterr().err
    assert load_clip(str(fine_tuned)).fingerprint == before


def test_siglip_gives_a_model_without_a_bias_one(teacher, corpus, capsys):
    pretrain(config(teacher, corpus, objective="siglip", optim=OptimConfig(steps=2), dry_run=True))
    printed = capsys.readouterr().out
    assert "it has no logit bias: siglip begins with -10" in printed
    assert "chosen    lr 3e-05" in printed


def test_another_config_than_that_of_the_weights_is_refused(teacher, corpus):
    with pytest.raises(InputError, match=r"--model tiny-vit: .*embed_dim is \d+ and 32, in this order"):
        pretrain(config(teacher, corpus, model="tiny-vit", dry_run=True))


def test_what_interpolate_needs_is_said_at_once(capsys):
    assert main(["interpolate", "--model", "runs/a"]) == 2
    assert "--towards and --out are required." in capsys.readouterr().err
    assert main(["interpolate", "--alpha", "1.5"]) == 2
    assert "alpha is 1.5: give a number from 0 to 1." in capsys.readouterr().err
