"""The configuration of each command: frozen dataclasses, YAML in, YAML out.

A section is defined beside what it configures and composed here. Field names are unique within a
command, so a flag, a key of the YAML file and a parameter in MLflow share one name.
"""

import dataclasses
import errno
import math
import os
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml

from beamclip.addresses import lacks_secrets, without_secrets
from beamclip.cluster import WorkersConfig
from beamclip.data.captions import CaptionConfig
from beamclip.data.stream import StreamConfig
from beamclip.data.transforms import AugmentConfig
from beamclip.errors import InputError
from beamclip.files import read_yaml, write_whole
from beamclip.losses.contrastive import Objective
from beamclip.losses.csm import CsmConfig
from beamclip.losses.feature import FeatureConfig
from beamclip.losses.psd import PsdConfig
from beamclip.models.address import absolute_address
from beamclip.models.config import StudentConfig
from beamclip.places import LocalPath, PathOrAddress
from beamclip.prompts.anchors import PromptConfig
from beamclip.sections import MOST_SHOWN, in_sections
from beamclip.sweep.search import SearchConfig
from beamclip.tracking import TrackingConfig
from beamclip.training.checkpoint import CheckpointConfig
from beamclip.training.loop import CadenceConfig
from beamclip.training.optim import OptimConfig

Config = TypeVar("Config")

UNRECORDED = ("config", "resume")
"""Fields that say where values come from; they are no values themselves."""
ADDRESSES = frozenset(
    ("data", "teacher", "more_teachers", "eval_data", "train_data", "context_data", "urls", "out")
)
"""Texts that may be paths; other paths have the type."""
MOST_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class ScoringConfig:
    """What a trained model is scored on when training ends."""

    eval_data: PathOrAddress = None
    """Labelled images to score on: shards with a label column, or a folder of class folders."""
    label_column: str = "label"
    """Field of a sample's JSON that holds the id of its class."""
    scoring_batch: int = 256
    """Images encoded at a time."""


@dataclass(frozen=True)
class DistillConfig:
    """Transfer a CLIP teacher into a small student, from images alone."""

    data: PathOrAddress = None
    """Required. Folder or address of the shards that pipelines/ingest.py wrote, or of a teacher cache that
    pipelines/embed.py made of them: with it, no teacher looks at an image."""
    teacher: str | None = None
    """Required. open_clip:NAME/TAG, hf-hub:ORG/NAME, a local open_clip directory or checkpoint,
    open_clip:NAME/FILE, or a run of pretrain.py."""
    more_teachers: tuple[str, ...] = ()
    """Further teachers: the anchors' similarities are averaged over all; the student takes the text tower of
    the first."""
    classes: LocalPath = None
    """Class list: the anchors, and the labels that the student is scored on. YAML or JSON, or a text of one
    name a line, in which `# ...` is a comment: a name that begins with # needs YAML."""
    anchors: Literal["classes", "captions", "both"] = "classes"
    """Whether the text anchors are the classes' prompts, captions drawn from the shards, or both."""
    caption_anchors: int = 4096
    """Captions to draw where anchors come from captions."""
    out: LocalPath = None
    """Folder of the run; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags come before it."""
    resume: PathOrAddress = None
    """Run to go on with, under the options it was started with: its folder, or, where that is lost, the
    address of its --checkpoints."""
    seed: int = 0
    """Decides initial weights, order, crops and augmentation."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the teacher; auto is bf16 where the device computes it natively."""
    student: StudentConfig = field(default_factory=StudentConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    csm: CsmConfig = field(default_factory=CsmConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cadence: CadenceConfig = field(default_factory=CadenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True)
class SweepConfig(DistillConfig):
    """Try settings of a distillation, at the price of the students alone: all share one teacher cache."""

    out: LocalPath = None
    """Folder of the sweep; by default a new one below runs/."""
    resume: str | None = None
    """Folder of a sweep to go on with, under the options it was started with: trials that came to their end
    are not run again, others go on from their checkpoints."""
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass(frozen=True)
class PretrainConfig:
    """Train an image and a text tower from captioned images."""

    data: PathOrAddress = None
    """Required. Folder or address of the shards that pipelines/ingest.py wrote."""
    model: str = "tiny-resnet18"
    """A named configuration, a name of open_clip, or a JSON file of open_clip's form."""
    objective: Objective = "clip"
    """Loss of the image-text pairs over the global batch: InfoNCE, SigLIP's pairwise sigmoid, or progressive
    self-distillation, which the psd options are for."""
    classes: LocalPath = None
    """Class list (text, YAML or JSON) of the data that the model is scored on."""
    out: LocalPath = None
    """Folder of the run; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags come before it."""
    resume: PathOrAddress = None
    """Run to go on with, under the options it was started with: its folder, or, where that is lost, the
    address of its --checkpoints."""
    seed: int = 0
    """Decides initial weights, order, crops and augmentation."""
    psd: PsdConfig = field(default_factory=PsdConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cadence: CadenceConfig = field(default_factory=CadenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True)
class EmbedConfig:
    """Embed images by a teacher once, for any number of distillations."""

    data: PathOrAddress = None
    """Required. Folder or address of the shards that pipelines/ingest.py wrote."""
    teacher: str | None = None
    """Required. open_clip:NAME/TAG, hf-hub:ORG/NAME, a local open_clip directory or checkpoint,
    open_clip:NAME/FILE, or a run of pretrain.py."""
    more_teachers: tuple[str, ...] = ()
    """Further teachers, whose embeddings lie beside the first one's."""
    out: PathOrAddress = None
    """Required. Folder or address of the cache; one that was begun before is finished."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags come before it."""
    augmentations: int = 4
    """Views of each image: training takes one an epoch, in turn."""
    image_size: int | None = None
    """Side of the crops, pixels; by default the largest of the teachers'. Must be the student's, where that
    is larger."""
    captions: bool = True
    """Embed the captions too."""
    seed: int = 0
    """Decides the views."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the teachers; auto is bf16 where the device computes it natively."""
    compile: bool = False
    """Compile the teachers by torch.compile: a minute for each worker at the start, faster afterwards."""
    embed_batch: int = 64
    """Views encoded at a time."""
    decode_threads: int = 2
    """Threads that decode and crop, in each worker."""
    min_workers: int = 1
    """Workers to begin with; where shards wait, their number rises to --num-workers."""
    verify: int = 64
    """Images to embed once more when the cache is finished, as a check; 0 leaves it out."""
    allow_missing_shards: bool = False
    """Count the samples of a shard that cannot be opened as lost, instead of ending the command."""
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        for name in ("augmentations", "embed_batch", "decode_threads", "min_workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give 1 or more.")
        if self.verify < 0:
            raise InputError(f"verify is {self.verify}: give 0 or more.")


@dataclass(frozen=True)
class PromptsConfig:
    """Look at the prompts of a class list, and at what contexts do to their anchors."""

    classes: LocalPath = None
    """Required. Class list (text, YAML or JSON)."""
    teacher: str | None = None
    """Required. open_clip:NAME/TAG, hf-hub:ORG/NAME, a local open_clip directory or checkpoint,
    open_clip:NAME/FILE, or a run of pretrain.py."""
    data: PathOrAddress = None
    """Shards on whose images sets of templates are compared, and whose captions context_source captions
    reads."""
    allow_missing_shards: bool = False
    """Leave out the captions of a shard that cannot be opened, instead of ending the command."""
    show: tuple[str, ...] = ()
    """Names or ids of classes to print the prompts of; by default the closest pair."""
    pairs: int = 20
    """Closest pairs of classes to print and to draw."""
    out: LocalPath = None
    """Folder of the results; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags come before it."""
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise InputError(f"pairs is {self.pairs}: give 1 or more.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a model on labelled images."""

    model: str | None = None
    """Required. A run, a local open_clip directory or checkpoint, open_clip:NAME/TAG, hf-hub:ORG/NAME, or
    open_clip:NAME/FILE."""
    data: PathOrAddress = None
    """Required. Labelled images: shards with a label column, or a folder of class folders."""
    classes: LocalPath = None
    """Required. Class list (text, YAML or JSON); its ids are the labels."""
    tasks: tuple[Literal["zeroshot", "probe"], ...] = ("zeroshot",)
    """zeroshot: nearest class prompt. probe: logistic regression on the backbone's features."""
    train_data: PathOrAddress = None
    """Labelled images that the probe is fitted on; needed for it."""
    label_column: str = "label"
    """Field of a sample's JSON that holds the id of its class."""
    scoring_batch: int = 256
    """Images encoded at a time."""
    allow_missing_shards: bool = False
    """Count the samples of a shard that cannot be opened as lost, instead of ending the command."""
    out: LocalPath = None
    """Folder of the results; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags come before it."""
    scoring_precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the image tower."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def read_config(config_class: type[Config], path: Path) -> Config:
    """The configuration in a YAML file; what the file leaves out has its default.

    Raises:
        InputError: the file cannot be read or is no YAML mapping; or as `parse_config`.
    """
    content = read_yaml(path, MOST_CONFIG_BYTES)
    if content is not None and not isinstance(content, dict):
        kind = "text" if isinstance(content, str) else type(content).__name__
        raise InputError(f"{path}: holds a {kind}. A mapping of options to values is needed.")
    return parse_config(config_class, content or {}, str(path))


def parse_config(config_class: type[Config], content: dict[str, Any], source: str) -> Config:
    """The configuration in nested mappings; an option may stand in its section or outside of all.

    Args:
        content: values, or the texts that stand for them on the command line: "1e-3" is a number where the
            option takes one, and a text where it takes a text.
        source: named in the messages.

    Raises:
        InputError: a key is unknown or stands twice, or a value has the wrong type; with the key's path.
    """
    placed = in_sections(config_class, content, source, not_in_files=UNRECORDED)
    try:
        return pydantic.TypeAdapter(config_class).validate_python(placed)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        refused = first.get("ctx", {}).get("error")
        if isinstance(refused, InputError):
            raise InputError(f"{source}: {path}: {refused}") from error
        given = repr(first["input"])[:MOST_SHOWN]
        raise InputError(f"{source}: {path}: {given} does not fit. {first['msg']}.") from error


def with_absolute_paths(config: Config) -> Config:
    """The configuration with paths that hold in any folder; what is not there, or no path, stays as it is."""
    changed: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            changed[item.name] = with_absolute_paths(value)
        elif isinstance(value, Path) or item.name in ADDRESSES:
            each = tuple(map(_absolute, value)) if isinstance(value, tuple) else _absolute(value)
            changed[item.name] = each
        elif item.name == "model" and os.path.isfile(value or ""):
            # A folder of the name of a model is not what was meant.
            changed[item.name] = _absolute(value)
    return replace(config, **changed)  # type: ignore[type-var]


def _absolute(address: Any) -> Any:
    if address is None or "://" in str(address):
        return address
    if isinstance(address, str):
        return absolute_address(address)
    path = address.expanduser()
    return path.resolve() if path.exists() else address


def check_values(config: Any) -> None:
    """Refuse what has the type of its option, and can be meant by nobody.

    Raises:
        InputError: with the option.
    """
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            check_values(value)
            continue
        for each in value if isinstance(value, tuple) else (value,):
            is_path = isinstance(each, Path) or item.name in ADDRESSES
            problem = _problem(each) or (_problem_of_path(each) if is_path else None)
            if problem:
                flag = f"--{item.name.replace('_', '-')}"
                raise InputError(f"{flag} {str(each)[:MOST_SHOWN]}: {problem} {flag}.")


def _problem(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number. Give one by"
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "is more than 64 bits hold. Give a smaller number by"
    if isinstance(value, (str, Path)) and lacks_secrets(str(value)):
        return "was written down without its user name, password or signature. Give the whole address by"
    return None


def _problem_of_path(value: Any) -> str | None:
    try:
        os.stat(value or "")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "is too long for the name of a file. Give a shorter one by"
    return None


def plain(config: Any) -> dict[str, Any]:
    """The configuration as nested mappings of YAML's own types; no address gives access to what it names."""
    content = dataclasses.asdict(config)
    return {key: _plain(value) for key, value in content.items() if key not in UNRECORDED}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return without_secrets(str(value)) if isinstance(value, (str, Path)) else value


def write_config(config: Any, path: Path) -> None:
    """Write a configuration so that `--config` reads it back as it is, in any folder."""
    write_whole(path, config_text(config))


def config_text(config: Any) -> str:
    """What `write_config` writes."""
    return yaml.safe_dump(plain(with_absolute_paths(config)), sort_keys=False, allow_unicode=True)


def parameters(config: Any) -> dict[str, Any]:
    """Every option by its own name, sections dissolved, as MLflow records them."""
    flat: dict[str, Any] = {}
    for key, value in plain(with_absolute_paths(config)).items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat
