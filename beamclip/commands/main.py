"""`beamclip COMMAND`: every command by its name. The programs in pipelines/ and tune/ run the same ones."""

import atexit
import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import beamclip
from beamclip.commands.command_line import run_command
from beamclip.commands.options import (
    ClassesConfig,
    DistillConfig,
    EmbedConfig,
    EvaluateConfig,
    InterpolateConfig,
    PretrainConfig,
    PromptsConfig,
    QuickstartConfig,
    ReportConfig,
    SweepConfig,
)
from beamclip.export.config import ExportConfig
from beamclip.ingest.config import IngestConfig
from beamclip.ray_environment import ask_for_tokens
from beamclip.spelling import did_you_mean


@dataclass(frozen=True)
class Command:
    """A command: its options, its help and the function that runs it."""

    options: type
    body: str
    """`module:function`, imported once the options are checked: importing torch and Ray takes seconds."""
    text: str
    """One line for the list of commands."""
    example: str
    """Typical options, shown by --help."""
    without_options: str | None = None
    """`module:function` that runs if no option is given; None: `body`."""


COMMANDS = {
    "quickstart": Command(
        QuickstartConfig,
        "beamclip.commands.quickstart:quickstart",
        "Try the whole path on drawings that beamclip makes itself, in about four minutes.",
        "--seed 1",
    ),
    "ingest": Command(
        IngestConfig,
        "beamclip.commands.ingest:ingest_urls",
        "Download a list of image URLs and captions into shards, with img2dataset.",
        "--urls list.parquet --url-column url --caption-column caption --out SHARDS",
    ),
    "pretrain": Command(
        PretrainConfig,
        "beamclip.commands.pretrain:pretrain",
        "Train an image and a text tower from captioned shards, as a teacher if there is none.",
        "--data SHARDS --model tiny-resnet18 --out RUN",
    ),
    "embed": Command(
        EmbedConfig,
        "beamclip.commands.embed:embed",
        "Embed images by a teacher once, in several views each, for any number of distillations.",
        "--data SHARDS --teacher T --out CACHE",
    ),
    "classes": Command(
        ClassesConfig,
        "beamclip.commands.classes:write_classes",
        "Write a class list: of labelled images, from WordNet, or one that a library ships.",
        "--folder imagenet/train --out classes.yaml",
    ),
    "prompts": Command(
        PromptsConfig,
        "beamclip.commands.prompts:show_prompts",
        "Show the prompts of a class list, and what contexts do to their anchors.",
        "--classes FILE --teacher T --context-source hierarchy --num-contexts 2",
    ),
    "distill": Command(
        DistillConfig,
        "beamclip.commands.distill:distill",
        "Transfer a CLIP teacher into a small student, from images alone. Without options: the quickstart.",
        "--data SHARDS --teacher T --student resnet18 --classes FILE --out RUN",
        without_options="beamclip.commands.quickstart:quickstart",
    ),
    "evaluate": Command(
        EvaluateConfig,
        "beamclip.commands.evaluate:evaluate",
        "Score a model by zero-shot, linear probe, neighbours and retrieval, each figure with its interval.",
        "--model RUN --data LABELLED --classes FILE --tasks zeroshot probe knn --train-data LABELLED",
    ),
    "export": Command(
        ExportConfig,
        "beamclip.commands.export:export",
        "Write a model for open_clip, timm, ONNX Runtime, plain torch or MLflow, checked against PyTorch.",
        "--model RUN --format open_clip|timm|onnx|torch|mlflow --out DIR",
    ),
    "interpolate": Command(
        InterpolateConfig,
        "beamclip.commands.interpolate:interpolate",
        "Average the weights of two models, such as a model and its fine-tuning.",
        "--model ZEROSHOT --towards FINETUNED --alpha 0.25 0.5 0.75 --out DIR",
    ),
    "sweep": Command(
        SweepConfig,
        "beamclip.sweep.sweep:sweep",
        "Sweep temperatures, contexts and other options of a distillation, from one teacher cache.",
        "--data SHARDS|CACHE --teacher T --classes FILE --eval-data LABELLED --out DIR",
    ),
    "report": Command(
        ReportConfig,
        "beamclip.commands.report:report",
        "Show a run on one HTML page, or several side by side: scores, curves, images, cost, origin.",
        "RUN [RUN ...] --out FILE",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names.

    Args:
        argv: words of the command line; by default those of this process.

    Returns:
        The exit code; see command_line.
    """
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"beamclip {beamclip.__version__}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        hint = did_you_mean(name, COMMANDS, f"There are {', '.join(COMMANDS)}.")
        print(f"error: {name}: no such command. {hint}", file=sys.stderr)
        return 2
    # Before anything imports Ray, and for joined clusters too: make up starts all of them with tokens.
    ask_for_tokens()
    body = command.body if flags or command.without_options is None else command.without_options
    # At exit, Python would spend two seconds on collecting torch's objects, which go with the process anyway.
    atexit.register(gc.freeze)
    run = _imported_when_run(body, with_options=body == command.body)
    description = f"{command.text}\n\nbeamclip {name} {command.example}"
    program = f"beamclip {name}"
    return run_command(command.options, run, description, flags, program=program, as_program=True)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.text}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: beamclip COMMAND [OPTIONS]",
            "",
            "Transfer what a large CLIP model knows into small vision models.",
            "",
            *lines,
            "",
            "beamclip COMMAND --help lists the options of a command, beamclip --version the version.",
        ]
    )


def _imported_when_run(body: str, *, with_options: bool) -> Callable[[Any], Any]:
    def run(config: Any) -> Any:
        module, function = body.split(":")
        found = getattr(importlib.import_module(module), function)
        return found(config) if with_options else found()

    return run
