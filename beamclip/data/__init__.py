"""Images and captions: shards, streaming, decoding, augmentation and the teacher cache."""

from typing import TYPE_CHECKING

from beamclip.lazy import lazily

if TYPE_CHECKING:
    from beamclip.data.config import Augmentation as Augmentation
    from beamclip.data.config import CaptionConfig as CaptionConfig
    from beamclip.data.loader import ImageBatch as ImageBatch
    from beamclip.data.loader import Stream as Stream
    from beamclip.data.loader import stream as stream
    from beamclip.data.transforms import augment as augment
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Augmentation": "config",
            "CaptionConfig": "config",
            "ImageBatch": "loader",
            "Stream": "loader",
            "augment": "transforms",
            "stream": "loader",
        },
    )
