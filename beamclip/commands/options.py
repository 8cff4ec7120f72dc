"""The options of each command, composed of sections that the other packages define.

Names of options are unique within a command, so a flag, a key of the YAML file and a parameter in MLflow
share one name.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.search import SearchConfig
from beamclip.corpus.common_symbols import SymbolList
from beamclip.data.config import AugmentConfig, CaptionConfig, StreamConfig
from beamclip.errors import InputError
from beamclip.evaluation.config import ProbeConfig
from beamclip.losses.config import (
    BatchTermsConfig,
    CsmConfig,
    FeatureConfig,
    Objective,
    PsdConfig,
    VisionConfig,
)
from beamclip.models.config import StudentConfig
from beamclip.places import LocalPath, PathOrAddress, Places
from beamclip.prompts.config import PromptConfig
from beamclip.ranges import Count, Natural, Share, check_ranges
from beamclip.tracking.config import TrackingConfig
from beamclip.training.config import CadenceConfig, CheckpointConfig, OptimConfig, ValidationConfig

Task = Literal["zeroshot", "probe", "knn", "retrieval", "agreement", "all"]


@dataclass(frozen=True)
class ScoringConfig:
    """What a trained model is scored on when training ends."""

    eval_data: PathOrAddress = None
    """Labelled images to score on: shards with a label column, a folder of class folders, images with a
    metadata file, a folder in CLIP_benchmark's webdataset form (its test split), or a data set of torchvision
    whose files are there (torchvision:FashionMNIST/test?root=FOLDER)."""
    label_column: str = "label"
    """Field (or column) of a sample that holds the id of its class; class folders and `.cls` need none."""
    scoring_batch: Count = 256
    """Images encoded at a time."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class DistillConfig:
    """Transfer a CLIP teacher into a small student, from images alone."""

    data: Places = ()
    """Required. Folders or addresses, one or several, of shards (of beamclip ingest, or other tars or parquet
    files of samples), of images, or of teacher caches that beamclip embed built from such: with a cache, no
    teacher runs."""
    teacher: str | None = None
    """Required. open_clip:NAME/TAG, hf-hub:ORG/NAME, a local open_clip directory or checkpoint,
    open_clip:NAME/FILE, or a run of beamclip pretrain."""
    more_teachers: tuple[str, ...] = ()
    """Further teachers: similarities to the anchors are averaged over all teachers; the text tower of the
    student is that of --teacher."""
    vision_teachers: tuple[str, ...] = ()
    """Teachers of vision only (DINO, supervised backbones), beside --teacher: timm:NAME with the pretrained
    weights of its tag, or timm:NAME/FILE with those of a checkpoint. What the student learns from them:
    vision_relation_weight and vision_feature_weight."""
    vision_image_size: Count | None = None
    """Side of the input of all vision teachers, pixels; by default each has what timm says of its weights."""
    classes: LocalPath = None
    """Class list: its prompts are the anchors, its ids the labels to score on. YAML, JSON, or text with one
    name a line, where `# ...` is a comment: a name that begins with # needs YAML. By default the classes that
    --eval-data name themselves, as CLIP_benchmark's and torchvision's data do."""
    anchors: Literal["classes", "captions", "both"] = "classes"
    """Text anchors: the prompts of the classes, captions drawn from the shards, or both."""
    caption_anchors: Count = 4096
    """Captions to draw as anchors, with --anchors captions or both."""
    out: LocalPath = None
    """Folder of the run; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    resume: PathOrAddress = None
    """Run to resume, under the options it was started with: its folder or, where that is lost, the address of
    its --checkpoints."""
    dry_run: bool = False
    """Load and check everything, time a few steps with random images on this machine, print how long the
    whole training would take and in how much memory, and stop. Nothing is written."""
    ship: bool = False
    """Export the student in every format of beamclip export into ship/ of the run: timm, ONNX (float32 and
    int8), torch and MLflow. model/ is its open_clip directory."""
    seed: Natural = 0
    """Seed of initial weights, data order, crops and augmentation."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the teacher; auto is bf16 where the device computes it natively."""
    student: StudentConfig = field(default_factory=StudentConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    csm: CsmConfig = field(default_factory=CsmConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    terms: BatchTermsConfig = field(default_factory=BatchTermsConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cadence: CadenceConfig = field(default_factory=CadenceConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class SweepConfig(DistillConfig):
    """Try settings of a distillation; all trials share one teacher cache, so only students are trained."""

    classes: LocalPath = None
    """Required. Class list: its prompts are the anchors, its ids the labels to score on. YAML, JSON, or text
    with one name a line, where `# ...` is a comment: a name that begins with # needs YAML."""
    out: LocalPath = None
    """Folder of the sweep; by default a new one below runs/."""
    resume: str | None = None
    """Folder of a sweep to resume, under the options it was started with: finished trials are not run again,
    others continue from their checkpoints."""
    dry_run: tyro.conf.Suppress[bool] = False
    """Not used."""
    ship: tyro.conf.Suppress[bool] = False
    """Refused: a sweep keeps scores, not students."""
    validation: tyro.conf.Suppress[ValidationConfig] = field(default_factory=ValidationConfig)
    """Not used: a trial is scored at the steps that the search needs. Hidden and not removed, so that
    distill.yaml of a run starts a sweep."""
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass(frozen=True)
class PretrainConfig:
    """Train an image and a text tower from captioned images."""

    data: Places = ()
    """Required. Folders or addresses, one or several, of shards (of beamclip ingest, or other tars or parquet
    files of samples) or of images with captions."""
    model: str | None = None
    """A small config of beamclip (tiny-resnet18, tiny-msclip-s, ...), a config of open_clip, or a JSON file
    in open_clip's format; by default that of --init, or tiny-resnet18."""
    init: str | None = None
    """Start from the weights of this model, to fine-tune it: a run, a local open_clip directory or
    checkpoint, open_clip:NAME/TAG, hf-hub:ORG/NAME, or open_clip:NAME/FILE. Config, logit scale, mean and std
    come with them."""
    lock_image: bool = False
    """Keep the image tower as it is, and train the text tower to fit it (LiT, arXiv 2111.07991)."""
    lock_text: bool = False
    """Keep the text tower as it is."""
    objective: Objective = "clip"
    """Loss of the image-text pairs over the global batch: InfoNCE (clip), SigLIP's pairwise sigmoid (siglip)
    or progressive self-distillation (psd), which the psd options are for."""
    classes: LocalPath = None
    """Class list (text, YAML or JSON) of the images that the model is scored on; by default the classes that
    --eval-data name themselves, as CLIP_benchmark's and torchvision's data do."""
    out: LocalPath = None
    """Folder of the run; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    resume: PathOrAddress = None
    """Run to resume, under the options it was started with: its folder or, where that is lost, the address of
    its --checkpoints."""
    dry_run: bool = False
    """Load and check everything, time a few steps with random images on this machine, print how long the
    whole training would take and in how much memory, and stop. Nothing is written."""
    seed: Natural = 0
    """Seed of initial weights, data order, crops and augmentation."""
    psd: PsdConfig = field(default_factory=PsdConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cadence: CadenceConfig = field(default_factory=CadenceConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class EmbedConfig:
    """Embed images by a teacher once, for any number of distillations."""

    data: PathOrAddress = None
    """Required. Folder or address of shards (of beamclip ingest, or other tars or parquet files of samples)
    or of images."""
    teacher: str | None = None
    """Required. open_clip:NAME/TAG, hf-hub:ORG/NAME, a local open_clip directory or checkpoint,
    open_clip:NAME/FILE, or a run of beamclip pretrain."""
    more_teachers: tuple[str, ...] = ()
    """Further teachers, whose embeddings are stored beside those of --teacher."""
    vision_teachers: tuple[str, ...] = ()
    """Teachers of vision only, timm:NAME or timm:NAME/FILE, whose features are stored as well."""
    vision_image_size: Count | None = None
    """Side of the input of all vision teachers, pixels; by default each has what timm says of its weights."""
    out: PathOrAddress = None
    """Required. Folder or address of the cache; an unfinished one is completed. On a cluster with a storage
    (BEAMCLIP_STORAGE) it is cache, unless given."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    augmentations: Count = 4
    """Views of each image; training uses one per epoch, in turn."""
    image_size: Count | None = None
    """Side of the crops, pixels; by default that of the largest teacher. A student that takes larger images
    needs their size here."""
    captions: bool = True
    """Embed the captions too."""
    seed: Natural = 0
    """Seed of the views."""
    teacher_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the teachers; auto is bf16 where the device computes it natively."""
    compile: bool = False
    """Compile the teachers with torch.compile: a minute per worker at the start, faster afterwards."""
    embed_batch: Count = 64
    """Views encoded at a time."""
    decode: Literal["auto", "worker", "tasks"] = "auto"
    """Where images are decoded. worker: in threads of each worker. tasks: in tasks of Ray Data, by the CPUs
    of all nodes. auto: in tasks where workers have GPUs and leave four CPUs each or more."""
    decode_threads: Count = 2
    """Threads that decode and crop in each worker, with --decode worker."""
    verify: Natural = 64
    """Images to embed once more when the cache is complete, as a check; 0 skips it."""
    allow_missing_shards: bool = False
    """Count the samples of a shard that cannot be opened as lost, instead of ending the command."""
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ClassesConfig:
    """Write a class list: of labelled images, from WordNet, or one that a library ships."""

    folder: PathOrAddress = None
    """Folder or address of labelled images: their class folders, or the classes that they number and name
    (CLIP_benchmark's form, Hugging Face's ClassLabel). A folder named n01440764 is a WordNet synset."""
    synsets: tuple[str, ...] = ()
    """Synsets of WordNet, as dog.n.01 or n02084071: the classes are those below them, with their parents."""
    depth: Natural | None = None
    """Levels below --synsets at which classes are taken; by default wherever nothing is below."""
    names: str | None = None
    """A list that a library ships: imagenet1k, imagenet-a, imagenet-r, or that of a data set of torchvision
    whose files are there (torchvision:FashionMNIST/test?root=FOLDER)."""
    parents: bool = False
    """Give each class that has a synset its parents by WordNet, as --synsets does in any case."""
    wordnet: LocalPath = None
    """The dict folder of Princeton's WordNet, 3.0 for ImageNet's synsets; by default the one nltk has."""
    out: LocalPath = None
    """Required. File to write, .yaml, .yml or .json; one that exists is left as it is."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PromptsConfig:
    """Show the prompts of a class list, and what contexts do to their anchors."""

    classes: LocalPath = None
    """Required. Class list (text, YAML or JSON), or imagenet1k, imagenet-a, imagenet-r."""
    teacher: str | None = None
    """Required. open_clip:NAME/TAG, hf-hub:ORG/NAME, a local open_clip directory or checkpoint,
    open_clip:NAME/FILE, or a run of beamclip pretrain."""
    data: PathOrAddress = None
    """Shards: sets of templates are compared on their images, and --context-source captions reads their
    captions."""
    allow_missing_shards: bool = False
    """Skip a shard that cannot be opened, instead of ending the command."""
    show: tuple[str, ...] = ()
    """Names or ids of classes whose prompts are printed; by default the closest pair."""
    pairs: Count = 20
    """Closest pairs of classes to print and to draw."""
    out: LocalPath = None
    """Folder of the results; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a model on labelled or captioned images, with 95 % intervals."""

    model: str | None = None
    """Required. A run, a local open_clip directory or checkpoint, open_clip:NAME/TAG, hf-hub:ORG/NAME, or
    open_clip:NAME/FILE."""
    data: Places = ()
    """Required. Labelled images: shards with a label column, a folder of class folders, images with a
    metadata file, a folder in CLIP_benchmark's webdataset form (its test split), or a data set of torchvision
    whose files are there (torchvision:FashionMNIST/test?root=FOLDER); with captions for --tasks retrieval,
    which needs no labels. Of several data sets, the first is what the others are shifts of (see --baseline).
    """
    classes: LocalPath = None
    """Class list (text, YAML or JSON), or imagenet1k, imagenet-a, imagenet-r; its ids are the labels. By
    default the data's own classes (classnames.txt of CLIP_benchmark, torchvision's, or those of a Hugging
    Face ClassLabel), else those of the run, except with --tasks all. All tasks but retrieval need classes."""
    tasks: tuple[Task, ...] = ("zeroshot",)
    """zeroshot: nearest class prompt. probe: linear classifier on the backbone's features. knn: its 10 and 20
    nearest training images. retrieval: captions by images and images by captions. agreement: with the
    predictions of --teacher. all: those that the other options and the data allow."""
    train_data: PathOrAddress = None
    """Labelled images for the probe and for nearest neighbours, which need it."""
    teacher: str | None = None
    """Model to compare predictions with, for --tasks agreement, in any form that --model takes."""
    against: LocalPath = None
    """Folder of another evaluation of the same images, or of a training with --eval-data: says of each figure
    whether this model is better, worse, or whether the images are too few to tell."""
    baseline: Places = ()
    """Folders of three or more evaluations of other models on the same data sets: how far accuracy on each
    data set after the first exceeds what theirs predict from the first (effective robustness)."""
    label_column: str = "label"
    """Field (or column) of a sample that holds the id of its class; class folders need none."""
    caption_columns: tuple[str, ...] = ()
    """Fields of a sample with captions besides its own, for --tasks retrieval: each a text, or a list."""
    scoring_batch: Count = 256
    """Images encoded at a time."""
    allow_missing_shards: bool = False
    """Count the samples of a shard that cannot be opened as lost, instead of ending the command."""
    out: LocalPath = None
    """Folder of the results; by default a new one below runs/."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""
    scoring_precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the image tower."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class InterpolateConfig:
    """Average the weights of two models of one config, such as a model and its fine-tuning."""

    model: str | None = None
    """Required. The first model: a run, a local open_clip directory or checkpoint, open_clip:NAME/TAG,
    hf-hub:ORG/NAME, or open_clip:NAME/FILE."""
    towards: str | None = None
    """Required. The second model, of the same config, in any form that --model takes."""
    alpha: tuple[Share, ...] = (0.5,)
    """Share of the second model in the average, from 0 to 1. Several make a model each."""
    out: LocalPath = None
    """Required. Folder of the run. The model is in model/, an open_clip directory; with several --alpha, each
    model has a folder of its own, such as alpha-0.5."""
    config: LocalPath = None
    """YAML file with values for any of these options; flags override it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.alpha:
            raise InputError("alpha is empty: give one number or several.")


Runs = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
"""Type of the folders that stand on the command line without a flag."""


@dataclass(frozen=True)
class ReportConfig:
    """Show a run on one HTML page, or several side by side."""

    runs: Runs = ()
    """Required. Folders of runs, of pretrain, distill, evaluate or sweep."""
    out: LocalPath = None
    """HTML file to write; by default report.html, in the folder of the run or, for several runs, here."""


@dataclass(frozen=True)
class QuickstartConfig:
    """Try the whole path on drawings that beamclip makes itself: ingest, teacher, student, scores."""

    symbols: SymbolList = "common"
    """common: 64 symbols that anybody recognises. all: 878, many of which differ by a stroke only, so
    that models this small name few of them."""
    seed: Natural = 0
    """Seed of the drawings, the initial weights and the order of training."""
    folder: LocalPath = Path("runs")
    """Folder of all stages; those that are finished there are not run again."""

    def __post_init__(self) -> None:
        check_ranges(self)
