"""Which options had an effect: those become the parameters of a run in MLflow.

The rule: every option, at its default or not, except

- those that only say where something is kept or how it is recorded: they change no figure;
- those that hold nothing (None, or an empty list): what they would switch on was not used;
- those that another option switched off, as `IDLE` lists them.

Defaults stay in, since two runs are compared by parameters that both have. A new option is a parameter until
it is listed here. config.yaml, an artifact of each run, holds all options.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from beamclip.config import parameters
from beamclip.data.config import CaptionConfig
from beamclip.evaluation.config import ProbeConfig
from beamclip.losses.config import PsdConfig, VisionConfig
from beamclip.prompts.config import PromptConfig
from beamclip.training.config import ValidationConfig

Options = Mapping[str, Any]

RECORDS = frozenset(
    (
        *("out", "checkpoints", "keep_checkpoints", "checkpoint_every", "log_every", "trace_samples"),
        *("experiment", "run_name", "system_metrics"),
    )
)
"""Options that say where something is kept, or how it is recorded."""


def _names(section: type, *but: str) -> tuple[str, ...]:
    return tuple(item.name for item in fields(section) if item.name not in but)


def _without(name: str, *values: Any) -> Callable[[Options], bool]:
    """Whether a command has the option, and it has one of these values."""
    return lambda options: name in options and options[name] in values


CLASS_SOURCES = ("classes", "eval_data", "val_data", "tasks")
"""Options that bring classes to a command; those with tasks are an evaluation's, whose data may name them."""

IDLE: tuple[tuple[tuple[str, ...], Callable[[Options], bool]], ...] = (
    (("tau_teacher", "more_tau_teachers", "tau_student", "anchor_chunk"), _without("csm_weight", 0)),
    (("feature_kind",), _without("feature_weight", 0)),
    (("vision_tau",), _without("vision_relation_weight", 0)),
    (_names(VisionConfig), _without("vision_teachers", [])),
    (_names(PsdConfig), _without("objective", "clip", "siglip")),
    (_names(CaptionConfig, "caption_columns"), _without("caption_columns", [])),
    (("caption_anchors",), _without("anchors", "classes")),
    (_names(PromptConfig), lambda options: not any(options.get(each) for each in CLASS_SOURCES)),
    (_names(PromptConfig), lambda options: {*options.get("tasks", "?")} <= {"probe", "knn", "retrieval"}),
    (_names(ProbeConfig), lambda options: "probe" not in options.get("tasks", ("probe",))),
    (("probe_iterations", "probe_c"), _without("probe", "ssl")),
    (("probe_epochs", "probe_lrs", "probe_batch"), _without("probe", "clip")),
    (_names(ValidationConfig), _without("eval_every", None, 0)),
    (("num_contexts", "context_data", "context_columns", "wordnet"), _without("context_source", "none")),
    (("label_column", "scoring_batch"), _without("eval_data", None)),
    (("init_pixels", "init_mean", "init_std"), _without("init_checkpoint", None)),
    (("momentum",), _without("optimizer", "adamw")),
    (("epochs",), lambda options: bool(options.get("steps") or options.get("samples"))),
    (("blur_sigma_min", "blur_sigma_max"), _without("blur_prob", 0)),
    (("teacher_view",), lambda options: "objective" in options),
    (("shared_weight_decay",), lambda options: "student" in options),
    (("decode_threads",), _without("decode", "tasks")),
    (("gpus_per_worker",), _without("use_gpu", False)),
    (("cpus_per_worker", "gpus_per_worker", "max_failures"), _without("num_workers", 0)),
    (("sync_batch_norm",), _without("num_workers", 0, 1)),
)
"""Options that have no effect, and when."""

IDLE_WITH_CACHE = ("teacher_precision",)
"""Options that have no effect with a teacher cache: no teacher runs."""


def effective_parameters(config: Any, *, cached: bool = False) -> dict[str, Any]:
    """Return the options of a command that had an effect, by their own names, without sections.

    Args:
        config: the options of any command, complete.
        cached: whether a distillation reads a teacher cache.
    """
    options = parameters(config)
    if augmentation := getattr(config, "augmentation", None):
        options |= asdict(augmentation.chosen())
    idle = {*RECORDS, *(IDLE_WITH_CACHE if cached else ())}
    for names, is_idle in IDLE:
        if is_idle(options):
            idle |= {*names}
    return {
        name: value for name, value in options.items() if name not in idle and value not in (None, [], "")
    }
