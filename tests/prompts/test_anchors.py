"""Prompts of classes, and the anchors a text encoder makes of them."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip import CLIP, OPENAI_IMAGENET_TEMPLATES, SimpleTokenizer, build_zero_shot_classifier
from torch import Tensor

from beamclip.errors import InputError
from beamclip.prompts.anchors import (
    Anchors,
    caption_anchors,
    encode_anchors,
    truncated_prompts,
)
from beamclip.prompts.class_prompts import class_prompts, count_alike
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig

CRANE = ClassEntry("1", "crane", contexts=("it wades", "it is grey"), parents=("wading bird", "bird"))
OWL = ClassEntry("2", "owl")
PROMPTS = [["crane", "a crane"], ["owl", "an owl", "crane"]]


class HashEncoder:
    """Embeds a text as numbers drawn with its hash as the seed; keeps what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def embed(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        return 3 * torch.randn(8, generator=torch.Generator().manual_seed(seed))

    def __call__(self, texts: list[str]) -> Tensor:
        self.batches.append(texts)
        return torch.stack([self.embed(text) for text in texts])

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


def encode(
    encoder: HashEncoder, reduce: str = "mean", cache_dir: Path | None = None, name: str = "e"
) -> Anchors:
    return encode_anchors(PROMPTS, encoder, reduce, cache_dir=cache_dir, encoder_fingerprint=name)  # type: ignore[arg-type]


def test_without_contexts_a_class_has_one_prompt_a_template() -> None:
    config = PromptConfig(templates=("name", "photo"), context_source="file")
    assert class_prompts([CRANE, OWL], config) == [
        ["crane", "a photo of a crane."],
        ["owl", "a photo of an owl."],
    ]


def test_prompts_are_templates_times_the_first_contexts_and_the_bare_name_where_there_are_none() -> None:
    config = PromptConfig(templates=("{}", "a(n) {}!"), context_source="hierarchy", num_contexts=2)
    assert class_prompts([CRANE, OWL], config) == [
        [
            "crane, a type of wading bird",
            "crane, a type of bird",
            "a crane, a type of wading bird!",
            "a crane, a type of bird!",
        ],
        ["owl", "an owl!"],
    ]


def test_contexts_tell_classes_of_one_name_apart() -> None:
    machine = ClassEntry("3", "crane", contexts=("it lifts",))
    bird_prompts, machine_prompts = class_prompts(
        [CRANE, machine], PromptConfig(("photo",), context_source="file", num_contexts=1)
    )
    assert bird_prompts == ["a photo of a crane, it wades."]
    assert machine_prompts == ["a photo of a crane, it lifts."]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PromptConfig(("name",), num_contexts=2), "num_contexts is 2, but context_source is none"),
        (
            PromptConfig(("name",), num_contexts=1, context_source="hierarchy"),
            "0 of 1 classes carry `parents`",
        ),
    ],
)
def test_contexts_that_cannot_be_had_are_refused(config: PromptConfig, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        class_prompts([OWL], config)
    assert expected in str(caught.value)


def test_classes_of_the_same_prompts_are_counted_as_a_tokenizer_reads_them() -> None:
    prompts = [["crane", "a crane"], ["a  Crane", "crane"], ["crane"], ["owl"]]
    assert count_alike(prompts) == (3, 2)


def test_the_mean_anchor_is_the_unit_mean_of_unit_prompt_embeddings() -> None:
    encoder = HashEncoder()
    anchors = encode(encoder, "mean")
    for row, of_class in enumerate(PROMPTS):
        units = [v / v.norm() for v in map(encoder.embed, of_class)]
        mean = sum(units, torch.zeros(8)) / len(units)
        torch.testing.assert_close(anchors.embeddings[row], mean / mean.norm())
    assert anchors.class_index.tolist() == [0, 1]
    assert anchors.class_index.dtype == torch.int64


def test_separate_anchors_are_the_unit_prompt_embeddings_with_the_class_of_each() -> None:
    encoder = HashEncoder()
    anchors = encode(encoder, "separate")
    want = torch.stack([encoder.embed(prompt) for of_class in PROMPTS for prompt in of_class])
    torch.testing.assert_close(anchors.embeddings, F.normalize(want, dim=1))
    assert anchors.class_index.tolist() == [0, 0, 1, 1, 1]


def test_every_distinct_prompt_is_encoded_once_in_batches() -> None:
    encoder = HashEncoder()
    encode_anchors(PROMPTS, encoder, "mean", cache_dir=None, encoder_fingerprint="e", batch_size=3)
    assert encoder.batches == [["crane", "a crane", "owl"], ["an owl"]]


def test_a_half_precision_encoder_with_gradients_gives_detached_float32_anchors() -> None:
    weight = torch.randn(4, requires_grad=True)
    anchors = encode_anchors(
        [["a"], ["b"]],
        lambda texts: weight.bfloat16().expand(len(texts), 4),
        "mean",
        cache_dir=None,
        encoder_fingerprint="e",
    )
    assert anchors.embeddings.dtype == torch.float32
    assert not anchors.embeddings.requires_grad
    torch.testing.assert_close(anchors.embeddings.norm(dim=1), torch.ones(2))


def test_a_second_run_reads_the_cache_whatever_the_reduction(tmp_path: Path) -> None:
    encoder = HashEncoder()
    first = encode(encoder, "separate", tmp_path / "cache")
    fresh = HashEncoder()
    second = encode(fresh, "separate", tmp_path / "cache")
    torch.testing.assert_close(second.embeddings, first.embeddings, rtol=0, atol=0)
    encode(fresh, "mean", tmp_path / "cache")
    assert fresh.batches == []
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_another_encoder_or_another_split_into_prompts_does_not_meet_the_cache(tmp_path: Path) -> None:
    encode(HashEncoder(), cache_dir=tmp_path)
    encoder = HashEncoder()
    encode(encoder, cache_dir=tmp_path, name="other")
    assert encoder.texts == ["crane", "a crane", "owl", "an owl"]
    for captions in (["ab", "c"], ["a", "bc"]):
        caption_anchors(captions, encoder, cache_dir=tmp_path, encoder_fingerprint="e")
    assert encoder.texts[4:] == ["ab", "c", "a", "bc"]


@pytest.mark.parametrize("left", [b"", b"torn off in the midd"])
def test_a_torn_cache_file_is_made_anew(tmp_path: Path, left: bytes) -> None:
    want = encode(HashEncoder(), cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(left)
    encoder = HashEncoder()
    torch.testing.assert_close(
        encode(encoder, cache_dir=tmp_path).embeddings, want.embeddings, rtol=0, atol=0
    )
    assert encoder.texts
    again = HashEncoder()
    encode(again, cache_dir=tmp_path)
    assert again.texts == []


def test_each_caption_is_one_anchor_even_if_it_repeats() -> None:
    encoder = HashEncoder()
    anchors = caption_anchors(["b", "a", "b"], encoder, cache_dir=None, encoder_fingerprint="e")
    want = F.normalize(torch.stack([encoder.embed(text) for text in "bab"]), dim=1)
    torch.testing.assert_close(anchors.embeddings, want)
    assert anchors.class_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompts", "embeddings", "expected"),
    [
        ([], torch.ones(0, 4), "no classes"),
        ([["a"], []], torch.ones(1, 4), "no prompt for class 1"),
        ([["a"], ["b"]], torch.ones(3, 4), r"\[3, 4\] for 2 texts"),
        ([["a"], ["b"]], torch.tensor([[1.0], [float("nan")]]), "not finite for 'b'"),
    ],
)
def test_unusable_prompts_and_embeddings_are_refused(
    prompts: list[list[str]], embeddings: Tensor, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        encode_anchors(prompts, lambda _: embeddings, "mean", cache_dir=None, encoder_fingerprint="e")


def test_a_prompt_one_token_too_long_is_reported_with_its_class_and_one_that_just_fits_is_not() -> None:
    tokenizer = SimpleTokenizer(context_length=8)
    fits, cut = "one two three four five six", "one two three four five six seven"
    assert len(tokenizer.encode(fits)) + 2 == 8
    prompts = [[fits, "crane"], [cut, fits], [cut]]
    assert truncated_prompts(prompts, tokenizer, 8) == [(1, cut), (2, cut)]


def test_prompts_of_one_token_a_character_are_reported_from_the_first_length_that_is_cut() -> None:
    prompts = [["7" * length] for length in range(60, 90)]
    reported = truncated_prompts(prompts, SimpleTokenizer(), 77)
    assert reported == [(length - 60, "7" * length) for length in range(76, 90)]


def test_a_prompt_many_times_too_long_is_reported() -> None:
    text = "crane " * 300
    assert truncated_prompts([["crane"], [text]], SimpleTokenizer(), 77) == [(1, text)]


def test_the_mean_over_openai80_is_the_zero_shot_classifier_of_open_clip() -> None:
    vision = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
    text = {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model, tokenizer = CLIP(16, vision, text).eval(), SimpleTokenizer(context_length=24)
    names = ["crane", "owl", "red fox"]
    prompts = class_prompts([ClassEntry(name, name) for name in names], PromptConfig(("openai80",)))
    anchors = encode_anchors(
        prompts,
        lambda texts: model.encode_text(tokenizer(texts)),
        "mean",
        cache_dir=None,
        encoder_fingerprint="",
    )
    theirs = build_zero_shot_classifier(model, tokenizer, names, OPENAI_IMAGENET_TEMPLATES)
    assert torch.allclose(anchors.embeddings, theirs.T, atol=1e-6)
