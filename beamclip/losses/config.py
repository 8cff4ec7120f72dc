"""Options of the losses, apart from the losses themselves: parsing options must not import torch."""

from dataclasses import dataclass
from typing import Literal

from beamclip.ranges import Count, NonNegative, Positive, Share, check_ranges

Objective = Literal["clip", "siglip", "psd"]
"""Losses of image-text pairs: InfoNCE (losses.contrastive, arXiv 2103.00020), SigLIP (losses.sigmoid,
2303.15343), and progressive self-distillation (losses.psd, 2204.04588)."""

FeatureKind = Literal["cosine", "mse"]


@dataclass(frozen=True)
class CsmConfig:
    """How the student's similarity distribution over the anchors is matched to the teacher's."""

    tau_teacher: Positive = 0.02
    """Softmax temperature of the teacher, with several that of the first. Smaller is sharper: fewer anchors
    carry weight."""
    more_tau_teachers: tuple[Positive, ...] = ()
    """Softmax temperatures of the further teachers, one for each of --more-teachers in their order; by
    default tau_teacher for all. A sweep that varies tau_teacher leaves them as they are."""
    tau_student: Positive = 0.05
    """Softmax temperature of the student."""
    csm_weight: NonNegative = 1.0
    """Factor of this term in the total loss; 0 switches it off."""
    anchor_chunk: Count = 4096
    """Anchors compared at a time: affects memory (about 4 x batch x this many floats), not results."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class FeatureConfig:
    """An auxiliary term that constrains the student where the anchors do not."""

    feature_weight: NonNegative = 0.0
    """Factor of this term in the total loss; 0 switches it off. CLIP-KD uses 2000 with `mse`."""
    feature_kind: FeatureKind = "cosine"
    """`cosine` is 1 - cos; `mse` averages over the D components as well and so equals cosine x 2 / D."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class BatchTermsConfig:
    """Further terms, which compare the images of a batch with its captions or with each other.

    Captions are embedded by the first teacher; samples without one take no part. Temperatures are those of
    CSM, but for affinity mimicking.
    """

    icl_weight: NonNegative = 0.0
    """Factor of InfoNCE between the student's images and the teacher's captions (ICL of CLIP-KD, arXiv
    2307.12732, there 1); 0 switches it off."""
    crd_weight: NonNegative = 0.0
    """Factor of the KL divergence between teacher and student in how images and captions of a batch relate
    (CRD of CLIP-KD, there 1); 0 switches it off."""
    affinity_weight: NonNegative = 0.0
    """Factor of the cross-entropy between the same distributions at the temperature 1/50 (affinity mimicking
    of TinyCLIP, arXiv 2309.12314); 0 switches it off."""
    relation_weight: NonNegative = 0.0
    """Factor of the KL divergence between teacher and student in how the images of a batch relate to each
    other, which needs no text; 0 switches it off."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def read_captions(self) -> bool:
        """Whether a term needs captions."""
        return bool(self.icl_weight or self.crd_weight or self.affinity_weight)

    @property
    def compare_samples(self) -> bool:
        """Whether a term compares the samples of a batch with each other."""
        return bool(self.read_captions or self.relation_weight)


@dataclass(frozen=True)
class VisionConfig:
    """What the student's backbone learns from teachers of vision only, as a mean over them.

    Both terms act on the features before the student's projection into the space of --teacher, and not on its
    embeddings: these belong to that space, whose similarities are not a vision teacher's. That they stand
    beside CSM is this project's choice; as in AM-RADIO (arXiv 2312.06709), each teacher has a projection.
    """

    vision_relation_weight: NonNegative = 0.0
    """Factor of the KL divergence between a vision teacher and the student's features in how the images of a
    batch relate to each other (in the batch what CompRess, arXiv 2010.14713, does over a memory); 0 switches
    it off."""
    vision_tau: Positive = 0.04
    """Softmax temperature of both in that term: equal ones ask for equal cosines. CompRess has 0.04, too."""
    vision_feature_weight: NonNegative = 0.0
    """Factor of 1 - cosine between a vision teacher's features and a learned linear projection of the
    student's; 0 switches it off. The projections stay in the checkpoints, and are not exported."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def is_on(self) -> bool:
        """Whether a term has a weight."""
        return bool(self.vision_relation_weight or self.vision_feature_weight)


@dataclass(frozen=True)
class PsdConfig:
    """What the self-distilled rows of a batch learn from, and how their share grows."""

    psd_target: Literal["swap", "self", "sinkhorn", "ema"] = "swap"
    """swap: the other direction's softmax, transposed. self: the same direction, sharpened. sinkhorn: the
    balanced plan of both. ema: the similarities of a moving average of the model."""
    psd_sharpness: Positive = 1.0
    """Factor of the similarities that targets are made from; above 1 sharpens them."""
    psd_identity: Share = 0.1
    """Smallest weight of the pair itself in a target."""
    psd_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the self-distilled share moves from psd_start to psd_end."""
    psd_start: Share = 0.0
    """Share of a batch that is self-distilled right after the warm-up."""
    psd_end: Share = 0.5
    """Share at the last step; with a constant schedule, from the warm-up on."""
    psd_warmup: Share = 0.1
    """Share of the steps before the schedule begins; nothing is self-distilled in them."""
    psd_select: Literal["random", "low_confidence"] = "low_confidence"
    """Rows to self-distil: random ones in each step, or those the model is least sure of."""
    psd_ema_decay: Share = 0.995
    """Share that the moving average of target ema keeps of itself at each step."""

    def __post_init__(self) -> None:
        check_ranges(self)
