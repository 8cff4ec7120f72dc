"""Average the weights of two models, such as a zero-shot model and its fine-tuning."""

import time
from pathlib import Path

from beamclip.commands.console import print_stage
from beamclip.commands.options import InterpolateConfig
from beamclip.config import write_config
from beamclip.export.card import Card
from beamclip.export.folder import check_replaceable
from beamclip.export.open_clip_dir import LAYOUT, write_open_clip_dir
from beamclip.models.clip import load_clip
from beamclip.models.interpolation import check_alike, interpolated
from beamclip.option_texts import check_required
from beamclip.runs.folder import CONFIG_FILE, MODEL, check_own, make_run_dir
from beamclip.summary import Summary, write_summary


def interpolate(config: InterpolateConfig) -> Summary:
    """Write a model for each alpha, as an open_clip directory in the folder of the run.

    Raises:
        InputError: an option or a model cannot be used as given, or the models differ in more than their
            weights.
    """
    began = time.perf_counter()
    check_required(config)
    out = Path(str(config.out))
    check_own(out, {"model", "towards"})
    folders = _folders(config.alpha, out)
    for folder in folders.values():
        check_replaceable(folder, LAYOUT)
    first, second = load_clip(str(config.model)), load_clip(str(config.towards))
    check_alike(first, second)
    make_run_dir(out)
    write_config(config, out / CONFIG_FILE)
    for alpha, folder in folders.items():
        clip = interpolated(first, second, alpha)
        write_open_clip_dir(clip, folder, _card(config, alpha))
        print_stage("model", f"{1 - alpha:g} x {first.address} + {alpha:g} x {second.address}", str(folder))
    summary = Summary(
        command="interpolate",
        status="finished",
        wall_seconds=time.perf_counter() - began,
        paths={f"alpha {alpha:g}": str(folder.relative_to(out)) for alpha, folder in folders.items()},
        stages={
            "model": {"address": first.address, "fingerprint": first.fingerprint},
            "towards": {"address": second.address, "fingerprint": second.fingerprint},
        },
    )
    write_summary(out, summary)
    return summary


def _folders(alphas: tuple[float, ...], out: Path) -> dict[float, Path]:
    """Return the folder of the model of each alpha."""
    if len(alphas) == 1:
        return {alphas[0]: out / MODEL}
    return {alpha: out / f"alpha-{alpha:g}" for alpha in alphas}


def _card(config: InterpolateConfig, alpha: float) -> Card:
    return Card({"model": str(config.model), "towards": str(config.towards), "alpha": f"{alpha:g}"})
