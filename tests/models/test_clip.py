"""Models by address, and newly made ones."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import beamclip
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip, load_clip, new_clip

TEXTS = ["a photo of a crane", "a drawing of a whale"]


def write_config(directory: Path, clip: LoadedClip) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    return directory


def text_embeddings(clip: LoadedClip) -> torch.Tensor:
    with torch.no_grad():
        return clip.model.encode_text(clip.tokenizer(TEXTS))


def image_embeddings(clip: LoadedClip) -> torch.Tensor:
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        return clip.model.encode_image(images)


def assert_same(loaded: LoadedClip, original: LoadedClip) -> None:
    assert torch.equal(image_embeddings(loaded), image_embeddings(original))
    assert torch.equal(text_embeddings(loaded), text_embeddings(original))
    assert loaded.fingerprint == original.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_9.pt"])
def test_a_directory_is_loaded_whatever_its_weights_file(
    tmp_path: Path, micro_clip: LoadedClip, name: str
) -> None:
    write_config(tmp_path, micro_clip)
    state = micro_clip.model.state_dict()
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    loaded = load_clip(str(tmp_path))
    assert_same(loaded, micro_clip)
    assert loaded.address == str(tmp_path)
    assert loaded.image_size == 32
    assert loaded.embed_dim == 24


def test_a_run_is_loaded_from_its_model_folder(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path / "model", micro_clip)
    torch.save(micro_clip.model.state_dict(), tmp_path / "model" / "open_clip_model.pt")
    assert_same(load_clip(str(tmp_path)), micro_clip)


def test_a_ddp_training_checkpoint_is_loaded_with_the_config_beside_it(
    tmp_path: Path, micro_clip: LoadedClip
) -> None:
    write_config(tmp_path, micro_clip)
    state = {f"module.{key}": value for key, value in micro_clip.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    torch.save({}, tmp_path / "epoch_4.pt")
    assert_same(load_clip(str(tmp_path / "epoch_3.pt")), micro_clip)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prefix", "key"),
    [
        ("lightning.ckpt", "model.", "state_dict"),
        ("compiled.pt", "module._orig_mod.", None),
        ("wrapped.pth", "model.clip.", "model"),
        ("teacher.bin", "", "teacher"),
    ],
)
def test_a_checkpoint_is_loaded_whatever_its_prefix_and_key(
    tmp_path: Path, micro_clip: LoadedClip, name: str, prefix: str, key: str | None
) -> None:
    write_config(tmp_path, micro_clip)
    state = {prefix + name: value for name, value in micro_clip.model.state_dict().items()}
    # Beside the model: what Lightning's modules keep of their own, optimisers, counters.
    more = {"loss.weight": torch.ones(3)} if prefix == "model." else {}
    content = {key: {**state, **more}, "optimizer": {"lr": 1.0}, "epoch": 3} if key else state
    torch.save(content, tmp_path / name)
    assert_same(load_clip(str(tmp_path)), micro_clip)


def test_a_checkpoint_of_two_models_is_refused(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path, micro_clip)
    state = micro_clip.model.state_dict()
    both = {f"{role}.{name}": value for role in ("fast", "slow") for name, value in state.items()}
    torch.save(both, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: holds 2 models, under 'fast\.', 'slow\.'\. Save the one"):
        load_clip(str(tmp_path))


@pytest.mark.slow
def test_a_checkpoint_without_a_config_is_loaded_by_its_configs_name(tmp_path: Path) -> None:
    clip = new_clip("nano-resnet10t", seed=3)
    file = tmp_path / "epoch_latest.pt"
    # As open_clip's own training leaves it.
    state = {f"module.{name}": value for name, value in clip.model.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": {}}, file)
    for address in (f"open_clip:nano-resnet10t/{file}", f"nano-resnet10t/{file}"):
        loaded = load_clip(address)
        assert loaded.fingerprint == clip.fingerprint
        assert torch.equal(loaded.tokenizer(TEXTS), clip.tokenizer(TEXTS))


@pytest.mark.parametrize("before", ["local-dir:", "open_clip:local-dir:"])
def test_open_clips_address_of_a_directory_is_understood(
    tmp_path: Path, micro_clip: LoadedClip, before: str
) -> None:
    write_config(tmp_path, micro_clip)
    torch.save(micro_clip.model.state_dict(), tmp_path / "open_clip_model.pt")
    assert_same(load_clip(f"{before}{tmp_path}"), micro_clip)


def fill_hub_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, repository: str = "") -> Path:
    """Without network, and with this repository where the hub's client keeps its downloads."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["hf-hub:", "open_clip:hf-hub:"])
@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_model_of_the_hub_is_loaded_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_clip: LoadedClip, before: str, weights: str
) -> None:
    directory = write_config(fill_hub_cache(monkeypatch, tmp_path, "lab/micro"), micro_clip)
    state = micro_clip.model.state_dict()
    save = save_file if weights.endswith("safetensors") else torch.save
    save(state, directory / weights)
    loaded = load_clip(f"{before}lab/micro")
    assert_same(loaded, micro_clip)
    assert loaded.address == f"{before}lab/micro"


def test_the_tokenizer_follows_the_models_context_length(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path, micro_clip)
    torch.save(micro_clip.model.state_dict(), tmp_path / "open_clip_model.pt")
    tokens = load_clip(str(tmp_path)).tokenizer(TEXTS)
    assert tokens.shape == (2, 16)
    assert torch.equal(tokens, open_clip.tokenize(TEXTS, context_length=16))


def test_loading_does_not_depend_on_or_move_the_global_random_state(
    tmp_path: Path, micro_clip: LoadedClip
) -> None:
    write_config(tmp_path, micro_clip)
    torch.save(micro_clip.model.state_dict(), tmp_path / "open_clip_model.pt")
    before = torch.get_rng_state()
    load_clip(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: LoadedClip, **pretrained: Any) -> None:
    """Make `micro-registered/local` known to open_clip, with its weights in a local file."""
    torch.save(clip.model.state_dict(), tmp_path / "registered.pt")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "micro-registered", clip.model_cfg)
    tag = {"file": str(tmp_path / "registered.pt"), **pretrained}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "micro-registered", {"local": tag})


def test_a_tag_brings_its_weights_mean_and_std(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_clip: LoadedClip
) -> None:
    register(monkeypatch, tmp_path, micro_clip, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    loaded = load_clip("open_clip:micro-registered/local")
    assert torch.equal(image_embeddings(loaded), image_embeddings(micro_clip))
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3)
    assert loaded.preprocessing.std == (0.4, 0.5, 0.6)


def test_a_tag_trained_with_quick_gelu_gets_it_although_the_named_config_has_gelu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_clip: LoadedClip
) -> None:
    register(monkeypatch, tmp_path, micro_clip, quick_gelu=True)
    loaded = load_clip("open_clip:micro-registered/local")
    reference = open_clip.CLIP(**micro_clip.model_cfg, quick_gelu=True).eval()
    reference.load_state_dict(micro_clip.model.state_dict())
    with torch.no_grad():
        expected = reference.encode_text(micro_clip.tokenizer(TEXTS))
    assert torch.equal(text_embeddings(loaded), expected)
    assert not torch.equal(text_embeddings(loaded), text_embeddings(micro_clip))
    assert loaded.model_cfg["quick_gelu"] is True


@pytest.mark.parametrize(
    ("address", "messages"),
    [
        (
            "open_clip:ViT-B-32",
            ["names no pretrained weights", "open_clip:ViT-B-32/TAG", "openai", "metaclip_400m"],
        ),
        ("open_clip:ViT-B-32/opnai", ["has no tag 'opnai'", "openai"]),
        ("open_clip:vitb32/openai", ["no model named 'vitb32'", "Did you mean ViT-B-32"]),
        ("open_clip:zzz/x", ["no model named 'zzz'", "list_models"]),
        ("open_clip:ViT-S-32-alt/openai", ["no weights for ViT-S-32-alt", "local files"]),
        ("ViT-B-32/openai", ["no such file or directory", "Did you mean open_clip:ViT-B-32/openai?"]),
        ("open_clip:ViT-B-32/epoch_latest.pt", ["epoch_latest.pt: no such file", "has no such tag"]),
        ("open_clip:", ["no model named ''"]),
        ("local-dir:", ["'' is not a directory", "Give one with open_clip_config.json"]),
        ("local-dir:runs/of-yesterday", ["runs/of-yesterday is not a directory"]),
        ("hf-hub:", ["'' is not an ORG/NAME"]),
        ("hf-hub:a/b/c", ["'a/b/c' is not an ORG/NAME"]),
        (
            "runs/of-yesterday",
            ["runs/of-yesterday: no such file or directory", "open_clip:NAME/TAG", "a run"],
        ),
    ],
)
def test_an_address_of_nothing_is_refused_with_what_was_probably_meant(
    address: str, messages: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        load_clip(address)
    assert str(error.value).startswith(address)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize("address", ["open_clip:ViT-B-32/openai", "hf-hub:lab/absent"])
def test_a_download_without_network_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    fill_hub_cache(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"could not be downloaded .*the network, or give the path") as error:
        load_clip(address)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_refused_with_both_shapes_and_a_count(
    tmp_path: Path, micro_clip: LoadedClip, micro_config: dict[str, Any]
) -> None:
    write_config(tmp_path, micro_clip)
    micro_config["vision_cfg"]["width"] = 32
    torch.save(open_clip.CLIP(**micro_config).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError) as error:
        load_clip(str(tmp_path / "other.pt"))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'other.pt'}: does not fit")
    assert str(tmp_path / "open_clip_config.json") in message
    ours, theirs = micro_clip.model.state_dict(), torch.load(tmp_path / "other.pt")
    differing = sum(ours[key].shape != theirs[key].shape for key in ours)
    assert f"{differing} of {len(ours)} tensors differ in shape" in message
    assert "visual.class_embedding is [32] in the file, [64] in the model" in message
    assert "Give the config that this checkpoint was trained with" in message


def test_missing_and_unknown_tensors_are_named(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path, micro_clip)
    state = dict(micro_clip.model.state_dict())
    state["backbone.fc"] = state.pop("ln_final.weight")
    torch.save(state, tmp_path / "open_clip_model.pt")
    with pytest.raises(InputError) as error:
        load_clip(str(tmp_path))
    assert "are not in the file (ln_final.weight)" in str(error.value)
    assert "Unknown to the model: 1 (backbone.fc)." in str(error.value)


class Foreign:
    """Stands for the Python objects that training programs put into checkpoints."""


def test_a_checkpoint_with_python_objects_is_not_unpickled(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path, micro_clip)
    torch.save({"state_dict": micro_clip.model.state_dict(), "args": Foreign()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: cannot be read .*\.Foreign\).*nothing but tensors"):
        load_clip(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_model.pt"])
def test_a_truncated_weights_file_is_named(tmp_path: Path, micro_clip: LoadedClip, name: str) -> None:
    write_config(tmp_path, micro_clip)
    (tmp_path / name).write_bytes(b"\x01\x02 no weights")
    with pytest.raises(InputError, match=f"{name}: cannot be read as a file of weights"):
        load_clip(str(tmp_path))


def test_a_directory_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a model directory nor a finished run"):
        load_clip(str(tmp_path))


def test_a_directory_without_weights_is_refused(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path, micro_clip)
    with pytest.raises(InputError, match=r"has no weights\. Put open_clip_model\.safetensors beside"):
        load_clip(str(tmp_path))


def test_a_directory_with_several_checkpoints_asks_which(tmp_path: Path, micro_clip: LoadedClip) -> None:
    write_config(tmp_path, micro_clip)
    for name in ("epoch_1.pt", "epoch_2.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(InputError, match=r"2 weight files \(epoch_1\.pt or epoch_2\.pt\)\. Name the one"):
        load_clip(str(tmp_path))


def test_weights_without_a_config_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: weights do not say .*open_clip_config\.json beside it"):
        load_clip(str(tmp_path / "a.pt"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt: not a weights file; it must end with \.safetensors"):
        load_clip(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object, not a list"),
        ("{}", "has no model_cfg"),
        ("[" * 100_000, "nested more than"),
        ('{"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}', "open_clip cannot build this model .*text_cfg"),
        ('{"model_cfg": {"embed_dim": 8, "vision_cfg": 3, "text_cfg": {}}}', "open_clip cannot build this"),
        (
            '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"colour": 1}, "text_cfg": {}}}',
            "open_clip cannot build this model .*colour",
        ),
    ],
)
def test_a_broken_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    torch.save({}, tmp_path / "open_clip_model.pt")
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(InputError, match=f"open_clip_config.json: .*{message}"):
        load_clip(str(tmp_path))


CONFIGS = Path(beamclip.__file__).parent / "models" / "configs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("nano-resnet10t", 32), ("tiny-resnet10t", 48), ("tiny-resnet18", 48), ("tiny-vit", 48)],
)
def test_our_named_configs_embed_images_and_texts_in_one_space(name: str, size: int) -> None:
    clip = new_clip(name, seed=0)
    with torch.no_grad():
        image = clip.model.encode_image(torch.zeros(2, 3, clip.image_size, clip.image_size))
        text = clip.model.encode_text(clip.tokenizer(TEXTS))
    assert image.shape == text.shape == (2, clip.embed_dim)
    assert clip.image_size == size


def test_the_nano_config_starts_at_a_temperature_of_a_fifth() -> None:
    assert new_clip("nano-resnet10t", seed=0).model.logit_scale.exp().item() == pytest.approx(5, rel=1e-3)


def test_a_seed_decides_the_weights_and_leaves_the_global_random_state(micro_file: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = new_clip(micro_file, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = new_clip(micro_file, seed=5)
    assert_same(first, second)
    assert new_clip(micro_file, seed=6).fingerprint != first.fingerprint


def test_open_clips_own_names_are_accepted() -> None:
    clip = new_clip("ViT-S-32-alt", seed=0)
    assert clip.model_cfg == open_clip.get_model_config("ViT-S-32-alt")


def test_a_config_file_may_set_the_preprocessing(tmp_path: Path, micro_config: dict[str, Any]) -> None:
    micro_config["preprocess"] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    file = tmp_path / "own.json"
    file.write_text(json.dumps(micro_config))
    clip = new_clip(file, seed=0)
    assert clip.preprocessing.mean == (0.5, 0.5, 0.5)
    assert clip.preprocessing.std == (0.25, 0.25, 0.25)
    assert "preprocess" not in clip.model_cfg
    del micro_config["preprocess"]
    file.write_text(json.dumps(micro_config))
    assert new_clip(file, seed=0).fingerprint != clip.fingerprint


def test_an_unknown_config_name_is_answered_with_the_list() -> None:
    with pytest.raises(InputError) as error:
        new_clip("tiny-resnet", seed=0)
    assert "Did you mean tiny-resnet18, tiny-resnet10t," in str(error.value)
    listed = sorted(file.stem for file in CONFIGS.iterdir())
    assert f"Give {', '.join(listed[:-1])} or {listed[-1]}, an open_clip model name" in str(error.value)


@pytest.mark.parametrize("config", ["hf-hub:lab/micro", "local-dir:runs/model", "local-dir:", ""])
def test_a_new_model_is_made_of_a_config_and_not_of_an_address(config: str) -> None:
    with pytest.raises(InputError, match="no model config of this name"):
        new_clip(config, seed=0)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        new_clip(tmp_path / "absent.json", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_cfg": None}, "has no text_cfg"),
        (
            {"text_cfg": {"vocab_size": 1000}},
            "text_cfg.vocab_size is 1000, too few for CLIP's tokenizer. Make it 49408",
        ),
        ({"text_cfg": {"hf_tokenizer_name": "gemma"}}, "text_cfg.hf_tokenizer_name is 'gemma'.*Leave it out"),
        ({"vision_cfg": [1]}, r"vision_cfg is \[1\]\. It must be a JSON object"),
        ({"preprocess": {"mean": 0.5}}, "its preprocessing has mean 0.5. It must be three numbers"),
        ({"vision_cfg": {"timm_model_name": "resnet99"}}, "open_clip cannot build this model .*resnet99"),
    ],
)
def test_a_config_file_that_describes_no_usable_model_is_refused(
    tmp_path: Path, micro_config: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    config = {key: value for key, value in {**micro_config, **change}.items() if value is not None}
    (tmp_path / "own.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"own.json: {message}"):
        new_clip(tmp_path / "own.json", seed=0)


def test_towers_with_an_oblong_input_are_refused(tmp_path: Path, micro_config: dict[str, Any]) -> None:
    micro_config["vision_cfg"]["image_size"] = [32, 64]
    (tmp_path / "own.json").write_text(json.dumps(micro_config))
    clip = new_clip(tmp_path / "own.json", seed=0)
    with pytest.raises(InputError, match=r"own\.json: its input is 32 x 64 pixels"):
        _ = clip.image_size
