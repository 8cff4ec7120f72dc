"""The commands as functions: the same options, checks and results as on the command line.

An option is a keyword of its own name, `tau_student` for `--tau-student`; `beamclip distill --help` lists all
of them. Values are those of a `--config` file: a path may be a text or a Path, and where an option takes
several values, a single one will do. What is not given has its default.

A function works in a notebook, in any thread, and inside one's own Ray job: a Ray that is up is used and left
as it is.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from beamclip.commands.command_line import configure, keep_folder, with_folder
from beamclip.commands.console import shown_as_stages
from beamclip.commands.main import COMMANDS
from beamclip.errors import InputError
from beamclip.export.config import Format
from beamclip.option_texts import is_required
from beamclip.runs.folder import new_run_dir
from beamclip.summary import Summary

Place = str | PathLike[str]
"""A path, or an address such as s3://bucket/shards."""


def ingest(*, urls: Place | None = None, out: Place | None = None, **options: Any) -> Summary:
    """Download a list of image URLs and captions into shards, as `beamclip ingest` does.

    Args:
        urls: list of URLs: .parquet, .csv, .tsv or .jsonl, or a folder of such files.
        out: folder or address for the shards.
        options: further ones by their names, such as keep_columns="label".

    Returns:
        What is in summary.json; `counts` has the failures by reason.

    Raises:
        InputError: an option, the list or a value cannot be used.
        FailedRunError: no image was stored, or whole shards were lost.
    """
    return _run("ingest", options, urls=urls, out=out)


def pretrain(
    *,
    data: Place | Sequence[Place] | None = None,
    model: Place | None = None,
    out: Place | None = None,
    **options: Any,
) -> Summary:
    """Train an image and a text tower from captioned images, as `beamclip pretrain` does.

    Args:
        data: shards or folders of images with captions, one or several.
        model: config of beamclip or open_clip, such as "tiny-resnet18", or a JSON file in open_clip's format.
        out: folder of the run; by default a new one below runs/.
        options: further ones by their names, such as objective="psd".

    Returns:
        What is in summary.json; `paths["out"]` is the folder of the run, for `beamclip.load`.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        TrainingError: training could not be finished.
        UnscoredError: training succeeded, but a later step such as scoring failed.
        KeyboardInterrupt: the run was interrupted; its message says how to resume it.
    """
    return _run("pretrain", options, data=data, model=model, out=out)


def embed(
    *,
    data: Place | None = None,
    teacher: Place | None = None,
    out: Place | None = None,
    **options: Any,
) -> Summary:
    """Embed images by a teacher once, for any number of distillations, as `beamclip embed` does.

    To embed some images and have the embeddings, use `beamclip.load(...).embed(images)`.

    Args:
        data: shards or a folder of images.
        teacher: a run, a local open_clip directory or checkpoint, open_clip:NAME/TAG or hf-hub:ORG/NAME.
        out: folder or address of the cache.
        options: further ones by their names, such as augmentations=2.

    Returns:
        What is in summary.json of the cache.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        CacheError: embedding failed, or the check of the finished cache did.
    """
    return _run("embed", options, data=data, teacher=teacher, out=out)


def distill(
    *,
    data: Place | Sequence[Place] | None = None,
    teacher: Place | None = None,
    student: str | None = None,
    classes: Place | None = None,
    out: Place | None = None,
    **options: Any,
) -> Summary:
    """Transfer a CLIP teacher into a small student, from images alone, as `beamclip distill` does.

    Args:
        data: shards, folders of images, or teacher caches, one or several.
        teacher: a run, a local open_clip directory or checkpoint, open_clip:NAME/TAG or hf-hub:ORG/NAME.
        student: a timm backbone, by default resnet18.
        classes: class list (text, YAML or JSON), whose prompts are the anchors.
        out: folder of the run; by default a new one below runs/.
        options: further ones by their names, such as tau_student=0.05, epochs=20, resume="runs/a".

    Returns:
        What is in summary.json; `metrics` has the scores with eval_data, and `paths["out"]` is the folder of
        the run, for `beamclip.load`.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        TrainingError: training could not be finished.
        UnscoredError: training succeeded, but a later step such as scoring failed.
        KeyboardInterrupt: the run was interrupted; its message says how to resume it.
    """
    return _run("distill", options, data=data, teacher=teacher, student=student, classes=classes, out=out)


def evaluate(
    *,
    model: Place | None = None,
    data: Place | Sequence[Place] | None = None,
    classes: Place | None = None,
    tasks: str | Sequence[str] | None = None,
    out: Place | None = None,
    **options: Any,
) -> Summary:
    """Score a model on labelled images, as `beamclip evaluate` does.

    Args:
        model: a run, a local open_clip directory or checkpoint, open_clip:NAME/TAG or hf-hub:ORG/NAME.
        data: labelled images: shards with a label column, class folders, or images with a metadata file.
        classes: class list (text, YAML or JSON); its ids are the labels.
        tasks: what to score, by default zero-shot classification.
        out: folder of the results; by default a new one below runs/.
        options: further ones by their names, such as train_data="labelled-train".

    Returns:
        What is in summary.json: `metrics` has the scores, fractions in 0..1.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
    """
    return _run("evaluate", options, model=model, data=data, classes=classes, tasks=tasks, out=out)


def export(
    *,
    model: Place | None = None,
    format: Format | None = None,
    out: Place | None = None,
    classes: Place | None = None,
    **options: Any,
) -> Summary:
    """Write a model in the format of another tool, as `beamclip export` does.

    Args:
        model: a run, a local open_clip directory or checkpoint, open_clip:NAME/TAG or hf-hub:ORG/NAME.
        format: open_clip, timm, onnx, torch or mlflow.
        out: folder of the export.
        classes: class list of the classifier in onnx, torch and mlflow; by default that of the run.
        options: further ones by their names, such as precision="int8".

    Returns:
        What is in summary.json of the export.

    Raises:
        InputError: an option, the model or the data cannot be used as given.
        FailedRunError: the export differs from the model by more than it may.
    """
    return _run("export", options, model=model, format=format, out=out, classes=classes)


def interpolate(
    *,
    model: Place | None = None,
    towards: Place | None = None,
    alpha: float | Sequence[float] | None = None,
    out: Place | None = None,
    **options: Any,
) -> Summary:
    """Average the weights of two models of one config, as `beamclip interpolate` does.

    Args:
        model: the first, in any form that `export` takes.
        towards: the second, such as what was fine-tuned from the first.
        alpha: share of the second in the average, 0..1, by default 0.5; several make a model each.
        out: folder of the run: the model is in model/ there, several are in alpha-0.25/ and so on.
        options: further ones by their names.

    Returns:
        What is in summary.json of `out`; `paths` has the folder of each model.

    Raises:
        InputError: a model cannot be loaded, or the two differ in more than their weights.
    """
    return _run("interpolate", options, model=model, towards=towards, alpha=alpha, out=out)


def sweep(
    *,
    data: Place | Sequence[Place] | None = None,
    teacher: Place | None = None,
    classes: Place | None = None,
    vary: str | Sequence[str] | None = None,
    out: Place | None = None,
    **options: Any,
) -> Summary:
    """Try settings of a distillation, as `beamclip sweep` does.

    Args:
        data: shards, folders of images, or teacher caches, one or several.
        teacher: a run, a local open_clip directory or checkpoint, open_clip:NAME/TAG or hf-hub:ORG/NAME.
        classes: class list (text, YAML or JSON).
        vary: options and what to try, such as ["tau_student=0.05,0.1,0.2", "lr=1e-4..1e-2"].
        out: folder of the sweep; by default a new one below runs/.
        options: further ones by their names, such as eval_data="labelled", trials=24.

    Returns:
        What is in summary.json of the sweep.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
        KeyboardInterrupt: the sweep was interrupted; its message says how to resume it.
    """
    return _run("sweep", options, data=data, teacher=teacher, classes=classes, vary=vary, out=out)


def _run(name: str, options: dict[str, Any], **named: Any) -> Summary:
    command = COMMANDS[name]
    given = {key: value for key, value in named.items() if value is not None} | options
    config: Any = with_folder(configure(command.options, given, f"beamclip.{name}"), name)
    if config.out is None and not is_required(command.options, "out"):
        config = replace(config, out=new_run_dir(None, name))
    module, function = command.body.split(":")
    body = getattr(importlib.import_module(module), function)
    # The command may train in this process, and sets torch up for it.
    from beamclip.training.process import settings_restored

    with shown_as_stages(), settings_restored():
        try:
            summary: Summary = body(config)
        except InputError:
            # Whoever was refused has no run: its folder may be another's.
            raise
        except BaseException:
            keep_folder(config)
            raise
    keep_folder(config)
    return replace(summary, paths={**summary.paths, "out": str(config.out)})
