"""Write a model in the format of another tool, and check it against PyTorch."""

import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from beamclip.commands.console import print_stage
from beamclip.commands.export_inputs import (
    RunFacts,
    calibration_images,
    checked_images,
    classes_of,
    run_facts,
    show_parities,
)
from beamclip.errors import InputError
from beamclip.export import hub
from beamclip.export.card import opens_in_open_clip
from beamclip.export.config import ExportConfig, Format
from beamclip.export.folder import check_replaceable
from beamclip.export.formats import (
    LAYOUTS,
    Classes,
    Exported,
    Parities,
    write_mlflow,
    write_onnx,
    write_open_clip,
    write_timm,
    write_torch,
)
from beamclip.export.mlflow_model import Registration, check_registration
from beamclip.export.onnx_model import require_onnx
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.option_texts import check_required
from beamclip.prompts.classes import load_classes
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.templates import AUTO, resolve_templates
from beamclip.summary import Summary, write_summary
from beamclip.tracking import tracked_run_id, tracking_uri

_ONLY_WITH: dict[str, tuple[Format, ...]] = {
    "classes": ("open_clip", "onnx", "torch", "mlflow"),
    "precision": ("onnx", "mlflow"),
    "calibration_data": ("onnx", "mlflow"),
    "opset": ("onnx", "mlflow"),
    "any_size": ("onnx",),
    "text_encoder": ("onnx",),
    "license": ("open_clip",),
    "push": ("open_clip",),
    "register": ("mlflow",),
}
_DEFAULTS = ExportConfig()
_CLASSIFIERS: tuple[Format, ...] = ("onnx", "torch", "mlflow")


def export(config: ExportConfig) -> Summary:
    """Write a model in one format, print how close it comes to PyTorch, and pass it on where asked to.

    Raises:
        InputError: an option, the model or the data cannot be used as given.
        FailedRunError: the export differs too much from PyTorch, or an upload failed.
    """
    began = time.perf_counter()
    format, out = _checked(config)
    run = run_facts(str(config.model))
    place = _registration(config, out, run)
    clip = load_clip(str(config.model))
    print_stage("model", f"{config.model}", f"{clip.image_size} px, {clip.embed_dim} numbers")
    if config.push and not opens_in_open_clip(clip):
        print_stage(
            "warning", "open_clip cannot load this model (MS-CLIP-S): who downloads it needs beamclip"
        )
    classes = _classes(config, format, clip, run)
    pixels, originals = checked_images(clip, config.check_data, run)
    model = Exported(
        clip,
        pixels,
        classes,
        _card(config, clip, run),
        partial(calibration_images, clip, config.calibration_data, run),
        originals,
    )
    parities, version = _write(config, format, model, out, place)
    show_parities(parities)
    address = hub.push(out, config.push, public=config.public) if config.push else None
    summary = _summary(config, out, parities, len(model.pixels), began, version)
    write_summary(out, summary)
    if version is not None:
        print_stage("registered", f"models:/{config.register}@{config.alias}", f"version {version}")
    if address:
        print_stage("pushed", address)
    print(f"{out}: {'  '.join(sorted(_shown(path) for path in out.iterdir()))}")
    return summary


def _checked(config: ExportConfig) -> tuple[Format, Path]:
    """Check what can be checked before the model is loaded."""
    check_required(config)
    assert config.format is not None, "check_required() refuses it"
    assert config.out is not None, "check_required() refuses it"
    _check_effects(config, config.format)
    if config.format in ("onnx", "mlflow"):
        require_onnx()
    check_replaceable(config.out, LAYOUTS[config.format])
    if config.push:
        hub.check_hub(config.push)
    return config.format, config.out


def _check_effects(config: ExportConfig, format: Format) -> None:
    """Refuse options that would change nothing."""
    given = [name for name in _ONLY_WITH if getattr(config, name) != getattr(_DEFAULTS, name)]
    useless = {_flag(name): _ONLY_WITH[name] for name in given if format not in _ONLY_WITH[name]}
    if format not in _ONLY_WITH["classes"]:
        useless |= {_flag(name): _ONLY_WITH["classes"] for name in _given_prompts(config.prompts)}
    for flag, formats in useless.items():
        raise InputError(
            f"{flag}: has no effect with --format {format}, only with {' or '.join(formats)}. Leave it out."
        )
    if config.public and not config.push:
        raise InputError("--public: has no effect without --push. Give --push ORG/NAME, or leave it out.")
    if config.alias != _DEFAULTS.alias and not config.register:
        raise InputError("--alias: has no effect without --register. Give --register NAME, or leave it out.")
    if config.calibration_data and config.precision != "int8":
        raise InputError(
            "--calibration-data: has no effect without --precision int8. Give that, or leave it out."
        )


def _given_prompts(prompts: PromptConfig) -> list[str]:
    default = PromptConfig()
    names = [each.name for each in fields(PromptConfig)]
    return [name for name in names if getattr(prompts, name) != getattr(default, name)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _classes(config: ExportConfig, format: Format, clip: LoadedClip, run: RunFacts) -> Classes | None:
    path = config.classes or run.classes
    if format not in _CLASSIFIERS or (path is None and format != "mlflow"):
        return None
    if path is None:
        raise InputError("--format mlflow: a classifier needs classes. Give --classes FILE.")
    if config.classes is None and not path.is_file():
        raise InputError(
            f"{path}: the class list of the run {run.folder} is gone. Give one by --classes FILE."
        )
    return classes_of(clip, path, _prompts(config, run), run.train_data)


def _prompts(config: ExportConfig, run: RunFacts) -> PromptConfig:
    """The run's own prompts with its own class list, unless others were asked for."""
    own = config.classes is None and config.prompts == PromptConfig() and run.prompts is not None
    return run.prompts if own and run.prompts else config.prompts


def _card(config: ExportConfig, clip: LoadedClip, run: RunFacts) -> Any:
    path = config.classes or run.classes
    entries = load_classes(path) if path is not None and path.is_file() else []
    templates = _prompts(config, run).templates
    if templates == (AUTO,):
        templates = clip.fitting.templates if clip.fitting else ()
    return run.card(entries, resolve_templates(templates) if templates else (), config.license)


def _write(
    config: ExportConfig, format: Format, model: Exported, out: Path, place: Registration | None
) -> tuple[Parities, int | None]:
    match format:
        case "open_clip":
            return write_open_clip(model, out), None
        case "timm":
            return write_timm(model, out), None
        case "torch":
            return write_torch(model, out), None
        case "onnx":
            parities = write_onnx(
                model,
                out,
                precision=config.precision,
                opset=config.opset,
                any_size=config.any_size,
                text_encoder=config.text_encoder,
            )
            return parities, None
        case "mlflow":
            return write_mlflow(
                model, out, precision=config.precision, opset=config.opset, registration=place
            )


def _registration(config: ExportConfig, out: Path, run: RunFacts) -> Registration | None:
    if config.register is None:
        return None
    folder = run.folder or out
    place = Registration(tracking_uri(folder), config.register, config.alias, tracked_run_id(folder))
    check_registration(place)
    return place


def _summary(
    config: ExportConfig, out: Path, parities: Parities, images: int, began: float, version: int | None
) -> Summary:
    metrics: dict[str, float] = {}
    for name, parity in parities.items():
        metrics |= parity.metrics(name)
    stages: dict[str, Any] = {"format": config.format, "model": str(config.model)}
    if version is not None:
        stages |= {"registered": config.register, "alias": config.alias, "version": version}
    return Summary(
        command="export",
        status="finished",
        wall_seconds=time.perf_counter() - began,
        images=images,
        metrics=metrics,
        paths=_paths(out),
        stages=stages,
    )


def _paths(out: Path) -> dict[str, str]:
    return {path.stem: path.name for path in sorted(out.iterdir()) if path.is_file()}


def _shown(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name
