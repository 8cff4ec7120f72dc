"""Labelled images to embeddings, features and labels: all of them, once, whoever computes."""

import copy
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from beamclip.cluster.config import WorkersConfig
from beamclip.data import bundles
from beamclip.data.class_folders import OUTSIDE
from beamclip.data.image_folder import NO_IMAGE_BESIDE
from beamclip.data.image_limits import CORRUPT_IMAGE, TOO_NARROW, UNSUPPORTED_FORMAT
from beamclip.data.listing import list_labelled
from beamclip.data.shards import (
    BROKEN_SHARD,
    MISSING_CAPTION,
    MISSING_IMAGE,
    MISSING_LABEL,
    ROW_SCHEMA,
    Columns,
    Shard,
    iterate_rows,
)
from beamclip.errors import InputError
from beamclip.evaluation.encode import (
    UNKNOWN_LABEL,
    Decoder,
    Encoded,
    Encoder,
    EncodeSpec,
    distinct_keys,
    encode_labelled,
    load_held_out,
)
from beamclip.evaluation.spaced import evenly_spaced, sample_images
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.teacher import Teacher

CLASSES = ["ant", "bee", "cat"]
HERE = WorkersConfig(num_workers=1)
BOTH = EncodeSpec(embeddings=True, features=True, batch_size=4)

MICRO: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> LoadedClip:
    config = tmp_path_factory.mktemp("configs") / "micro.json"
    config.write_text(json.dumps(MICRO))
    return new_clip(config, seed=0)


def picture(index: int, width: int = 45, height: int = 36) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_shard(
    folder: Path, shard: int, samples: list[tuple[bytes | None, str | None]], claimed: int
) -> Path:
    """A tar of (image, label) pairs as img2dataset lays it out."""
    path = folder / f"{shard:05d}.tar"
    with tarfile.open(path, "w") as tar:
        for i, (image, label) in enumerate(samples):
            fields = json.dumps({} if label is None else {"kind": label}).encode()
            for suffix, content in (("json", fields), ("png", image)):
                if content is not None:
                    member = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": claimed}))
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 9 and 5 samples; sample i of all shows picture(i) and is of class i % 3."""
    folder = tmp_path_factory.mktemp("clean")
    pairs = [(png(picture(i)), CLASSES[i % 3]) for i in range(14)]
    write_shard(folder, 0, pairs[:9], 9)
    write_shard(folder, 1, pairs[9:], 5)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 20 samples nine are usable, picture(0) to picture(8); the rest is counted in DAMAGE."""
    folder = tmp_path_factory.mktemp("damaged")
    good = [(png(picture(i)), CLASSES[i % 3]) for i in range(9)]
    image = good[0][0]
    bad = [(image[:90], "ant"), (image, "dog"), (b"<html>", "bee"), (None, "ant"), (image, None)]
    write_shard(folder, 0, [*good[:5], *bad, *good[5:8]], 13)
    write_shard(folder, 1, [(image, "eel")] * 3, 3)
    broken = write_shard(folder, 2, [good[8], good[0], good[1], good[2]], 4)
    with tarfile.open(broken) as tar:
        images = [member for member in tar if member.name.endswith(".png")]
    broken.write_bytes(broken.read_bytes()[: images[1].offset_data + 50])
    return folder


DAMAGE = {
    CORRUPT_IMAGE: 1,
    UNSUPPORTED_FORMAT: 1,
    UNKNOWN_LABEL: 4,
    MISSING_IMAGE: 1,
    MISSING_LABEL: 1,
    BROKEN_SHARD: 3,
}


def encode(clip: LoadedClip, folder: Path, spec: EncodeSpec = BOTH, workers: WorkersConfig = HERE) -> Encoded:
    return encode_labelled(clip, str(folder), CLASSES, "kind", spec, workers)


def in_a_fixed_order(encoded: Encoded) -> torch.Tensor:
    """Label, embedding and features of each image, sorted."""
    columns = [encoded.labels[:, None].float(), encoded.embeddings, encoded.features]
    table = torch.cat(columns, dim=1)
    return table[np.lexsort(table.numpy().round(3).T[::-1])]


def test_every_image_is_encoded_as_open_clip_itself_would(
    ray_cluster: None, clip: LoadedClip, clean: Path
) -> None:
    encoded = encode(clip, clean)
    preprocess = image_transform_v2(PreprocessCfg(**clip.preprocess_cfg), is_train=False)
    images = torch.stack([preprocess(picture(i)) for i in range(14)])
    with torch.inference_mode():
        wanted = clip.model.eval().encode_image(images, normalize=True)
    torch.testing.assert_close(encoded.embeddings, wanted, atol=1e-5, rtol=0.0)
    assert encoded.labels.tolist() == [i % 3 for i in range(14)]
    assert encoded.skipped == {}
    assert (encoded.embeddings.dtype, encoded.features.dtype) == (torch.float32, torch.float32)
    assert len(encoded.features) == 14


def test_held_out_images_are_what_the_model_is_given_and_the_damaged_are_counted(
    ray_cluster: None,
    clip: LoadedClip,
    clean: Path,
    damaged: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held_out = load_held_out(clip, str(clean), CLASSES, "kind", most=100)
    pixels = torch.from_numpy(held_out.images).permute(0, 3, 1, 2)
    embeddings = Teacher(clip).encode_image(pixels)
    torch.testing.assert_close(embeddings, encode(clip, clean).embeddings, atol=1e-6, rtol=0.0)
    assert held_out.labels.tolist() == [i % 3 for i in range(14)]
    lossy = load_held_out(clip, str(damaged), CLASSES, "kind", most=100)
    assert (len(lossy.images), len(lossy.labels), lossy.skipped) == (9, 9, DAMAGE)
    assert "shard 00000.tar, sample 000000008: missing image" in caplog.messages


def test_a_part_of_the_held_out_images_lies_at_even_distances(
    ray_cluster: None, clip: LoadedClip, clean: Path
) -> None:
    every = load_held_out(clip, str(clean), CLASSES, "kind", most=100)
    part = load_held_out(clip, str(clean), CLASSES, "kind", most=4)
    places = [14 * (2 * i + 1) // 8 for i in range(4)]
    np.testing.assert_array_equal(part.images, every.images[places])
    np.testing.assert_array_equal(part.labels, every.labels[places])


def test_embeddings_have_unit_length(ray_cluster: None, clip: LoadedClip, clean: Path) -> None:
    norms = encode(clip, clean).embeddings.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(14))


def test_only_what_was_asked_for_is_computed(ray_cluster: None, clip: LoadedClip, clean: Path) -> None:
    both = encode(clip, clean)
    embeddings = encode(clip, clean, EncodeSpec(embeddings=True, features=False))
    features = encode(clip, clean, EncodeSpec(embeddings=False, features=True))
    assert embeddings.features.shape == features.embeddings.shape == (0, 0)
    torch.testing.assert_close(embeddings.embeddings, both.embeddings)
    torch.testing.assert_close(features.features, both.features)


def test_lost_and_foreign_samples_are_counted_by_reason_and_the_others_encoded(
    ray_cluster: None, clip: LoadedClip, clean: Path, damaged: Path
) -> None:
    wanted = encode(clip, clean)
    for batch_size in (1, 4, 100):
        encoded = encode(clip, damaged, EncodeSpec(batch_size=batch_size))
        assert encoded.skipped == DAMAGE
        assert len(encoded.labels) + sum(encoded.skipped.values()) == 20
        assert encoded.labels.tolist() == [i % 3 for i in range(9)]
        torch.testing.assert_close(encoded.embeddings, wanted.embeddings[:9], atol=1e-5, rtol=0.0)


def test_two_actors_give_what_one_process_gives(
    ray_cluster: None, clip: LoadedClip, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "ROWS_PER_TASK", 1)  # a read task a shard, so that both actors have work
    alone = encode(clip, damaged)
    shared = encode(clip, damaged, workers=WorkersConfig(num_workers=2, cpus_per_worker=0.5))
    assert shared.skipped == alone.skipped == DAMAGE
    assert shared.keys == alone.keys
    assert shared.labels.tolist() == alone.labels.tolist()
    torch.testing.assert_close(shared.embeddings, alone.embeddings, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(shared.features, alone.features, atol=1e-5, rtol=0.0)


def test_keys_are_told_apart_by_shard_and_number_only_where_two_are_alike() -> None:
    assert distinct_keys(["1", "2"], ["a.tar", "b.tar"]) == ["1", "2"]
    assert distinct_keys(["1", "1", "2"], ["a", "b", "b"]) == ["a/1", "b/1", "b/2"]
    assert distinct_keys(["1", "1", "1"], ["a", "a", "b"]) == ["a/1", "a/1 (2)", "b/1"]


def test_captions_come_with_the_images_and_labels_are_not_needed(clip: LoadedClip, tmp_path: Path) -> None:
    for i, texts in enumerate((["a red ant", "an ant"], [], ["a bee"])):
        picture(i).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.json").write_text(json.dumps({"kind": CLASSES[i], "captions": texts}))
    alone = WorkersConfig(num_workers=0)
    spec = EncodeSpec(captions=True, caption_columns=("captions",))
    with_labels = encode(clip, tmp_path, spec, alone)
    assert with_labels.texts == [["a red ant", "an ant"], [], ["a bee"]]
    assert with_labels.labels.tolist() == [0, 1, 2]
    captioned = encode_labelled(clip, str(tmp_path), None, "kind", spec, alone)
    assert captioned.texts == [["a red ant", "an ant"], ["a bee"]]
    assert captioned.keys == ["0.png", "2.png"]
    assert captioned.skipped == {MISSING_CAPTION: 1}
    torch.testing.assert_close(captioned.embeddings, with_labels.embeddings[[0, 2]])


def test_a_folder_of_class_folders_is_encoded_by_folder_name(
    ray_cluster: None, clip: LoadedClip, clean: Path, tmp_path: Path
) -> None:
    for i in range(14):
        (tmp_path / CLASSES[i % 3]).mkdir(exist_ok=True)
        picture(i).save(tmp_path / CLASSES[i % 3] / f"{i}.png")
    (tmp_path / "dog").mkdir()
    picture(0).save(tmp_path / "dog" / "0.png")
    (tmp_path / "cat" / "empty.jpg").write_bytes(b"")
    (tmp_path / "cat" / "README.txt").write_text("Three cats.")
    (tmp_path / "cat" / "LICENSE").write_text("Free cats.")
    (tmp_path / "cat" / "thin.png").write_bytes(png(picture(1, 900, 1)))
    for i in (2, 5):  # in another format under another name, and behind links
        picture(i).save(tmp_path / f"{i}.tif")
        (tmp_path / "cat" / f"{i}.png").unlink()
        (tmp_path / "cat" / f"{i}").symlink_to(tmp_path / f"{i}.tif")
    (tmp_path / "cat" / "torn.png").write_bytes(png(picture(1))[:100])
    encoded = encode(clip, tmp_path)
    assert encoded.skipped == {
        UNKNOWN_LABEL: 1,
        MISSING_IMAGE: 1,
        CORRUPT_IMAGE: 1,
        NO_IMAGE_BESIDE: 1,
        UNSUPPORTED_FORMAT: 1,
        TOO_NARROW: 1,
        OUTSIDE: 2,
    }
    wanted = in_a_fixed_order(encode(clip, clean))
    torch.testing.assert_close(in_a_fixed_order(encoded), wanted, atol=1e-5, rtol=0.0)


def test_labels_that_fit_no_class_are_shown_with_what_the_list_has(
    ray_cluster: None, clip: LoadedClip, clean: Path
) -> None:
    with pytest.raises(InputError) as error:
        encode_labelled(clip, str(clean), ["n01", "n02"], "kind", BOTH, HERE)
    assert str(error.value) == (
        f"{clean}: no image to score; skipped: {{'label not in the class list': 14}}. "
        "The labels (column 'kind') must be ids of the class list. "
        "Found: ant, bee, cat; the list has n01, n02, ..."
    )


def test_a_wrong_label_column_is_shown_as_missing_labels(
    ray_cluster: None, clip: LoadedClip, clean: Path
) -> None:
    with pytest.raises(
        InputError, match=r"skipped: \{'missing label': 14\}\..*\(column 'colour'\).*Found: none"
    ):
        encode_labelled(clip, str(clean), CLASSES, "colour", BOTH, HERE)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_an_encoder_prepares_images_as_the_models_config_says(clip: LoadedClip, resize_mode: str) -> None:
    overlay = {"resize_mode": resize_mode, "interpolation": "bilinear", "fill_color": 40}
    config = {**clip.preprocess_cfg, **overlay}
    other = LoadedClip(clip.model, clip.tokenizer, clip.model_cfg, config, clip.fingerprint, clip.address)
    encoder = Encoder(other, EncodeSpec(), "cpu")
    row = {"key": "0", "image": png(picture(0)), "label": "ant", "epoch": 0}
    found = encoder(one_row(row))["embeddings"]
    preprocess = image_transform_v2(PreprocessCfg(**config), is_train=False)
    with torch.inference_mode():
        wanted = clip.model.eval().encode_image(preprocess(picture(0))[None], normalize=True)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def one_row(row: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist([row], ROW_SCHEMA)


def test_a_model_whose_embeddings_are_not_finite_is_refused(clip: LoadedClip, clean: Path) -> None:
    broken = copy.deepcopy(clip.model)
    with torch.no_grad():
        next(broken.visual.parameters()).fill_(torch.nan)
    other = replace(clip, model=broken)
    for spec, name in ((EncodeSpec(), "embeddings"), (EncodeSpec(False, True), "features")):
        with pytest.raises(InputError, match=rf"its {name} of 14 of 14 images are not finite \("):
            encode_labelled(other, str(clean), CLASSES, "kind", spec, WorkersConfig(num_workers=0))


def test_even_distances_are_those_of_counting_over_all_shards(clean: Path) -> None:
    shard = list_labelled(str(clean))[0]
    shards = [replace(shard, samples=number) for number in (3, 0, 1, 10)]
    every = [(place, row) for place, each in enumerate(shards) for row in range(each.samples)]
    for count in (1, 4, 14, 30):
        places, rows = evenly_spaced(shards, count)
        number = min(count, 14)
        wanted = [every[14 * (2 * i + 1) // (2 * number)] for i in range(number)]
        assert list(zip(places.tolist(), rows.tolist(), strict=True)) == wanted


def test_pictures_are_taken_at_even_distances(clean: Path) -> None:
    pixels, labels = sample_images(str(clean), CLASSES, "kind", count=4, size=16)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (4, 3, 16, 16))
    # Of 14 samples: the middles of four equal parts.
    assert labels == [i % 3 for i in (1, 5, 8, 12)]


def test_more_pictures_than_there_are_give_all_usable_ones(damaged: Path) -> None:
    pixels, labels = sample_images(str(damaged), CLASSES, "kind", count=100, size=16)
    assert labels == [i % 3 for i in range(9)]
    assert len({tuple(image.flatten().tolist()) for image in pixels}) == 9


def test_labels_of_a_shard_are_those_of_its_samples(clean: Path) -> None:
    shard: Shard = list_labelled(str(clean))[1]
    rows = iterate_rows(shard, Columns(label="kind"), range(shard.samples))
    labels = [row["label"] for row in rows]
    assert labels == [CLASSES[i % 3] for i in range(9, 14)]


def test_labels_in_decomposed_form_are_those_of_the_class_list(clip: LoadedClip, tmp_path: Path) -> None:
    folder = tmp_path / "cafe\u0301"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(picture(0)))
    _, labels = sample_images(str(tmp_path), ["th\u00e9", "caf\u00e9"], "label", count=4, size=16)
    assert labels == [1]
    row = {"key": "0", "image": png(picture(0)), "label": "cafe\u0301", "epoch": 0}
    assert Decoder(clip)(one_row(row))[1]["label"].tolist() == ["caf\u00e9"]
