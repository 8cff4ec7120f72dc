"""Examples of retrieval both ways, kept by an evaluation for its report."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beamclip.plots.kept import read_kept, write_kept
from beamclip.plots.sheet import checked_webp


@dataclass(frozen=True)
class FoundText:
    """A caption that an image found."""

    text: str
    similarity: float
    right: bool
    """Whether the caption is one of the image's own."""


@dataclass(frozen=True)
class FoundImage:
    """An image that a caption found."""

    image: str
    """WebP file, in base64."""
    similarity: float
    right: bool


@dataclass(frozen=True)
class ImageQuery:
    """An image, and the captions nearest to it."""

    image: str
    """WebP file, in base64."""
    captions: tuple[str, ...]
    """The image's own captions."""
    rank: int
    """Rank of the first of its own captions; 1 is the nearest."""
    found: tuple[FoundText, ...]


@dataclass(frozen=True)
class TextQuery:
    """A caption, and the images nearest to it."""

    text: str
    rank: int
    """Rank of its image; 1 is the nearest."""
    found: tuple[FoundImage, ...]


@dataclass(frozen=True)
class RetrievalExamples:
    """Evenly spaced queries of both directions."""

    images: int
    """Images that captions were looked up among."""
    texts: int
    """Captions that images were looked up among."""
    by_image: tuple[ImageQuery, ...]
    by_text: tuple[TextQuery, ...]


def write_retrieval(examples: RetrievalExamples, path: Path) -> None:
    """Write examples as a JSON file, whose folder is made."""
    write_kept(asdict(examples), path)


def read_retrieval(path: Path) -> RetrievalExamples:
    """Read what `write_retrieval` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    return read_kept(path, _examples, "a file of examples of retrieval")


def _examples(content: Any) -> RetrievalExamples:
    return RetrievalExamples(
        int(content["images"]),
        int(content["texts"]),
        tuple(map(_image_query, content["by_image"])),
        tuple(map(_text_query, content["by_text"])),
    )


def _image_query(content: Any) -> ImageQuery:
    found = tuple(
        FoundText(str(each["text"]), float(each["similarity"]), bool(each["right"]))
        for each in content["found"]
    )
    captions = tuple(map(str, content["captions"]))
    return ImageQuery(checked_webp(content["image"]), captions, int(content["rank"]), found)


def _text_query(content: Any) -> TextQuery:
    found = tuple(
        FoundImage(checked_webp(each["image"]), float(each["similarity"]), bool(each["right"]))
        for each in content["found"]
    )
    return TextQuery(str(content["text"]), int(content["rank"]), found)
