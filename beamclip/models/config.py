"""Options of the student, apart from the code that builds it: parsing options must not import timm."""

from dataclasses import dataclass
from typing import Literal

from beamclip.places import LocalPath
from beamclip.ranges import Count, check_ranges

Head = Literal["linear", "mlp"]
Pixels = Literal["auto", "imagenet", "inception", "openai", "teacher"]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class StudentConfig:
    """The network that learns from the teacher."""

    student: str = "resnet18"
    """A timm backbone, such as resnet10t, resnet18, convnext_atto, mobilenetv4_conv_small; or the image tower
    of an MS-CLIP config, such as tiny-msclip, msclip-b32, msclip-s-b32."""

    student_head: Head = "linear"
    """Projection from the backbone's features to the teacher's embedding: one layer, or two with a GELU."""

    pretrained: bool = False
    """Start from timm's pretrained weights; the student then uses their mean and std."""

    student_image_size: Count | None = None
    """Side of the student's input, pixels; by default the teacher's, or the only size the backbone takes."""

    init_checkpoint: LocalPath = None
    """Start the backbone from this file (self-supervised weights, say): .safetensors, or torch's format."""

    init_pixels: Pixels = "auto"
    """Mean and std that the weights of init_checkpoint were trained with; the student uses them too:
    ImageNet's, 0.5 (inception), OpenAI's, or the teacher's. auto reads them from the config beside the file;
    without one, it takes ImageNet's, as most self-supervised training does."""

    init_mean: Colour | None = None
    """Mean of red, green and blue, on the scale 0..1, instead of init_pixels. Needs init_std."""

    init_std: Colour | None = None
    """Standard deviation of red, green and blue, on the scale 0..1. Needs init_mean."""

    def __post_init__(self) -> None:
        check_ranges(self)
