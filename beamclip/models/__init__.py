"""Teachers and students: open_clip models whose parts come from open_clip and timm."""

from typing import TYPE_CHECKING

from beamclip.lazy import lazily

if TYPE_CHECKING:
    from beamclip.models.clip import ImageTower as ImageTower
    from beamclip.models.clip import LoadedClip as LoadedClip
    from beamclip.models.clip import load_clip as load_clip
    from beamclip.models.clip import new_clip as new_clip
    from beamclip.models.config import StudentConfig as StudentConfig
    from beamclip.models.pixels import Preprocessing as Preprocessing
    from beamclip.models.pixels import normalise_pixels as normalise_pixels
    from beamclip.models.student import backbone_features as backbone_features
    from beamclip.models.student import build_student as build_student
    from beamclip.models.teacher import ImageTeacher as ImageTeacher
    from beamclip.models.teacher import Teacher as Teacher
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "ImageTeacher": "teacher",
            "ImageTower": "clip",
            "LoadedClip": "clip",
            "Preprocessing": "pixels",
            "StudentConfig": "config",
            "Teacher": "teacher",
            "backbone_features": "student",
            "build_student": "student",
            "load_clip": "clip",
            "new_clip": "clip",
            "normalise_pixels": "pixels",
        },
    )
