"""beamclip.load: embeddings and class names of images in every form, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import beamclip
from beamclip.models.clip import new_clip
from beamclip.prompts.classes import ClassEntry

MICRO = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CLASSES = ["crane", "owl", "red circle"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A model of random weights, as a directory."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "micro.json").write_text(json.dumps(MICRO))
    beamclip.Model(new_clip(folder / "micro.json", seed=0), device="cpu").save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(saved) -> beamclip.Model:
    return beamclip.load(saved, device="cpu")


def picture(seed: int = 0, width: int = 50, height: int = 70) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_open_clip(saved: Path, images: list[Image.Image]) -> torch.Tensor:
    """The embeddings by open_clip alone."""
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{saved}")
    with torch.inference_mode():
        return network.eval().encode_image(torch.stack([preprocess(each) for each in images]), normalize=True)


def test_images_in_every_form_have_the_embeddings_that_open_clip_gives_them(model, saved, tmp_path):
    image = picture()
    (tmp_path / "a.png").write_bytes(encoded(image))
    pixels = np.asarray(image)
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").as_uri(),
        encoded(image),
        image,
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
    ]
    found = model.embed(forms)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(len(forms)))
    assert torch.allclose(found, of_open_clip(saved, [image]), atol=1e-6)
    for form in forms:
        assert torch.allclose(model.embed(form), found[:1], atol=1e-6)


def test_several_images_may_be_one_array_one_tensor_or_an_iterator(model):
    pixels = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    found = model.embed(pixels)
    assert found.shape == (3, 24)
    assert torch.equal(model.embed(torch.from_numpy(pixels).permute(0, 3, 1, 2)), found)
    assert torch.equal(model.embed(each for each in pixels), found)
    assert torch.equal(model.embed(tuple(pixels)), found)


def test_an_iterator_is_read_batch_by_batch(saved):
    asked = []

    def images():
        for number in range(5):
            asked.append(number)
            yield b"no image" if number == 1 else picture(number)

    with pytest.raises(beamclip.InputError, match=r"images\[1\]: unsupported image format"):
        beamclip.load(saved, device="cpu", batch_size=2).embed(images())
    assert asked == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("L"),
        lambda image: image.convert("P"),
        lambda image: Image.merge("RGBA", [*image.split(), image.convert("L")]),
    ],
    ids=["opaque", "grey", "palette", "transparent"],
)
def test_a_pillow_image_looks_like_its_file(change, model):
    image = change(picture())
    assert torch.allclose(model.embed(image), model.embed(encoded(image)), atol=1e-6)


def test_a_turned_photograph_stands_upright_in_both_forms(model):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    content = encoded(picture(), "JPEG", exif=exif, quality=95)
    opened = Image.open(io.BytesIO(content))
    upright = Image.open(io.BytesIO(content)).transpose(Image.Transpose.ROTATE_270)
    del upright.getexif()[0x0112]
    both = model.embed([content, opened])
    assert torch.equal(both[0], both[1])
    assert torch.allclose(both[:1], model.embed(np.asarray(upright)), atol=1e-6)


def test_texts_are_embedded_as_open_clip_does(model, saved):
    network, _, _ = open_clip.create_model_and_transforms(f"local-dir:{saved}")
    tokens = open_clip.get_tokenizer(f"local-dir:{saved}")(CLASSES)
    with torch.inference_mode():
        expected = network.eval().encode_text(tokens, normalize=True)
    assert torch.allclose(model.embed(texts=CLASSES), expected, atol=1e-6)
    assert torch.allclose(model.embed(texts="owl"), expected[1:2], atol=1e-6)


def test_nothing_has_no_embeddings(model):
    assert model.embed([]).shape == model.embed(texts=[]).shape == (0, 24)
    assert model.classify([], CLASSES) == []


def test_probabilities_are_a_softmax_over_the_prompts_at_the_models_temperature(model):
    images = [picture(seed) for seed in range(4)]
    prompts = ["a photo of a crane.", "a photo of an owl.", "a photo of a red circle."]
    logits = model.embed(images) @ model.embed(texts=prompts).T / 0.07
    assert model.temperature == pytest.approx(0.07)
    for likeliest, expected in zip(model.classify(images, CLASSES), logits.softmax(dim=1), strict=True):
        found = [each.probability for each in likeliest]
        assert found == pytest.approx(sorted(expected.tolist(), reverse=True), rel=1e-5)
        for label, name, probability in likeliest:
            assert label == name
            assert probability == pytest.approx(float(expected[CLASSES.index(name)]), rel=1e-5)


def test_templates_temperature_and_top_are_the_callers(model):
    image, templates = picture(), ["{}", "the {}"]
    anchors = model.anchors(CLASSES, templates=templates)
    units = [model.embed(texts=[template.format(name) for name in CLASSES]) for template in templates]
    assert torch.allclose(anchors, torch.nn.functional.normalize(units[0] + units[1], dim=1), atol=1e-6)
    expected = (model.embed(image) @ anchors.T / 0.5).softmax(dim=1)
    [[best]] = model.classify(image, CLASSES, templates=templates, temperature=0.5, top=1)
    assert best.probability == pytest.approx(float(expected.max()), rel=1e-5)
    assert torch.equal(model.anchors(CLASSES, templates="name"), model.anchors(CLASSES, templates=["{}"]))


def test_a_class_list_gives_ids_and_names_which_may_repeat(model, tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("- {id: bird, name: crane}\n- {id: machine, name: crane}\n- {id: owl, name: owl}\n")
    entries = [ClassEntry("bird", "crane"), ClassEntry("machine", "crane"), ClassEntry("owl", "owl")]
    found = model.classify(picture(), path)
    assert found == model.classify(picture(), str(path)) == model.classify(picture(), entries)
    assert {(each.label, each.name) for each in found[0]} == {(each.id, each.name) for each in entries}
    path.write_text("- cat\n- dog\n".replace("- ", "- name: "))
    assert {each.name for each in model.classify(picture(), path)[0]} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["nowhere.png"], "images[0] (nowhere.png): no such file. A text in place of an image is its path"),
        ([picture(), b"no image"], "images[1]: unsupported image format"),
        ([picture(), encoded(picture())[:900]], "images[1]: corrupt image"),
        ([picture(), 3], "images[1]: an object of type int is no image. Give paths, bytes,"),
        (3, "images: an object of type int holds no images."),
        (
            torch.zeros(3, 8, 8),
            "images[0]: pixels must be uint8 [3, H, W], 0 to 255, not torch.float32 [3, 8,",
        ),
        (np.zeros((2, 8, 8, 4), np.uint8), "images[0]: pixels must be uint8 [H, W, 3], 0 to 255, not uint8"),
        (Image.new("F", (8, 8)), "images[0]: Pillow's mode F does not say what is white."),
    ],
)
def test_an_image_that_cannot_be_used_is_named_by_its_index(images, message, model):
    with pytest.raises(beamclip.InputError) as caught:
        model.embed(images)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (["owl"], {}, "classes: holds one class"),
        ([], {}, "classes: the list is empty."),
        (["owl", "owl"], {}, 'classes: 2 classes share the id owl ("owl"): entries 1 and 2.'),
        (["owl", 3], {}, "classes: entry 2: name must be text, not the number 3."),
        (["owl", " "], {}, "classes: entry 2 has no name."),
        ("nowhere.yaml", {}, "nowhere.yaml: cannot be read (No such file or directory)."),
        (CLASSES, {"templates": "phot"}, "templates: 'phot' names no set of templates and holds no {}. Did"),
        (CLASSES, {"top": 0}, "top is 0: give 1 or more."),
        (CLASSES, {"temperature": 0.0}, "temperature is 0.0: give a number above 0."),
    ],
)
def test_classes_and_options_that_cannot_be_used_are_refused(classes, options, message, model):
    with pytest.raises(beamclip.InputError) as caught:
        model.classify(picture(), classes, **options)
    assert str(caught.value).startswith(message)


def test_images_and_texts_in_one_call_or_neither_are_refused(model):
    for given in ({}, {"images": picture(), "texts": "owl"}):
        with pytest.raises(beamclip.InputError, match="embed: give either images or texts"):
            model.embed(**given)
    with pytest.raises(beamclip.InputError, match="texts: holds a int"):
        model.embed(texts=["owl", 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device gpu: cannot be used here"),
        ({"precision": "fp16"}, "precision is 'fp16': give auto, fp32 or bf16."),
        ({"batch_size": 0}, "batch_size is 0: give 1 or more."),
    ],
)
def test_a_model_that_could_not_compute_is_refused(options, message, saved):
    with pytest.raises(beamclip.InputError) as caught:
        beamclip.load(saved, **options)
    assert str(caught.value).startswith(message)


def test_a_model_that_computes_in_bf16_is_saved_as_it_was_given(saved, tmp_path):
    model = beamclip.load(saved, device="cpu", precision="bf16")
    assert torch.allclose(model.embed(picture()), beamclip.load(saved).embed(picture()), atol=0.05)
    model.save(tmp_path / "again")
    weights = "open_clip_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (saved / weights).read_bytes()


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(beamclip.InputError, match="neither a model directory nor a finished run"):
        beamclip.load(tmp_path)
