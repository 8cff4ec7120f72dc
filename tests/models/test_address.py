"""The forms in which a model is named."""

from pathlib import Path

import pytest

from beamclip.models.address import absolute_address, split_address


@pytest.mark.parametrize(
    ("address", "schema", "rest"),
    [
        ("open_clip:ViT-B-32/openai", "open_clip", "ViT-B-32/openai"),
        ("hf-hub:lab/model", "hf-hub", "lab/model"),
        ("open_clip:hf-hub:lab/model", "hf-hub", "lab/model"),
        ("open_clip:local-dir:runs/a", "local-dir", "runs/a"),
        ("timm:resnet50.a1_in1k/dino.pth", "timm", "resnet50.a1_in1k/dino.pth"),
        ("runs/a", "", "runs/a"),
        ("runs/a:b", "", "runs/a:b"),
    ],
)
def test_an_address_is_a_schema_and_a_rest(address: str, schema: str, rest: str) -> None:
    assert split_address(address) == (schema, rest)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("runs/a", "{here}/runs/a"),
        ("local-dir:runs/a", "local-dir:{here}/runs/a"),
        ("open_clip:local-dir:runs/a", "open_clip:local-dir:{here}/runs/a"),
        ("open_clip:ViT-B-32/runs/a/epoch_1.pt", "open_clip:ViT-B-32/{here}/runs/a/epoch_1.pt"),
        ("ViT-B-32/runs/a/epoch_1.pt", "ViT-B-32/{here}/runs/a/epoch_1.pt"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("timm:resnet18/runs/a/epoch_1.pt", "timm:resnet18/{here}/runs/a/epoch_1.pt"),
        ("timm:openai", "timm:openai"),
        ("hf-hub:runs/a", "hf-hub:runs/a"),
        ("runs/absent", "runs/absent"),
    ],
)
def test_an_address_is_written_so_that_it_holds_in_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, expected: str
) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "epoch_1.pt").touch()
    (tmp_path / "openai").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute_address(address) == expected.format(here=tmp_path.resolve())
