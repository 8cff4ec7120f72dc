"""Ship a distilled student: every format of `beamclip export`, in the folder of its run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from beamclip.commands.after_training import AfterTraining
from beamclip.commands.console import print_stage
from beamclip.commands.export_inputs import (
    RunFacts,
    calibration_images,
    checked_images,
    classes_from,
    show_parities,
)
from beamclip.commands.options import DistillConfig
from beamclip.data.cache import is_cache
from beamclip.export.config import OLDEST_OPSET
from beamclip.export.formats import (
    Classes,
    Exported,
    Parities,
    write_mlflow,
    write_onnx,
    write_timm,
    write_torch,
)
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import is_convolutional
from beamclip.openclip import TimmModel
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry
from beamclip.runs.folder import SHIP


def ship(
    config: DistillConfig,
    student: LoadedClip,
    entries: list[ClassEntry],
    anchors: Anchors | None,
    run_dir: Path,
    after: AfterTraining,
) -> None:
    """Export a student in all formats into ship/ of its run; model/ is its open_clip directory.

    Each format is a step of its own: what fails is kept for the end of the command, and the others follow.

    Args:
        entries: the class list; may be empty.
        anchors: the anchors of the classes; without, there are no classifiers.
        after: runs the steps.
    """
    data = RunFacts(
        train_data=tuple(address for address in config.data if not is_cache(address)),
        eval_data=config.scoring.eval_data,
    )
    model = after.attempt("ship", lambda: _model(config, student, entries, anchors, data))
    if model is None:
        return
    for name, write in _steps(model, data).items():
        parities = after.attempt(f"ship {name}", partial(write, run_dir / SHIP / name))
        if parities is not None:
            print_stage("shipped", f"{SHIP}/{name}")
            show_parities(parities)


def _model(
    config: DistillConfig,
    student: LoadedClip,
    entries: list[ClassEntry],
    anchors: Anchors | None,
    data: RunFacts,
) -> Exported:
    classes: Classes | None = None
    if anchors is not None:
        classes = classes_from(student, entries, anchors, config.prompts)
    calibration = partial(calibration_images, student, None, data)
    pixels, originals = checked_images(student, None, data)
    return Exported(student, pixels, classes, calibration=calibration, originals=originals)


def _steps(model: Exported, data: RunFacts) -> dict[str, Callable[[Path], Parities]]:
    """The formats that this student has, by the names of their folders."""
    steps: dict[str, Callable[[Path], Parities]] = {}
    if isinstance(model.clip.model.visual, TimmModel):
        steps["timm"] = partial(write_timm, model)
    steps["onnx"] = partial(write_onnx, model, opset=OLDEST_OPSET)
    # A transformer needs no images to calibrate on.
    if data.train_data or not is_convolutional(model.clip.model.visual):
        steps["onnx-int8"] = partial(write_onnx, model, precision="int8", opset=OLDEST_OPSET)
    steps["torch"] = partial(write_torch, model)
    if model.classes is not None:
        steps["mlflow"] = lambda out: write_mlflow(model, out, opset=OLDEST_OPSET)[0]
    return steps
