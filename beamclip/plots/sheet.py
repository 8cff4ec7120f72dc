"""A sheet of images with what models make of them: the numbers behind predictions.png, kept beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from beamclip.plots.kept import read_kept, write_kept

Floats = npt.NDArray[np.float64]

TOP = 3
"""Predictions kept for each image and model."""
WEBP_QUALITY = 90


@dataclass(frozen=True)
class Guess:
    """A class that a model finds likely for an image."""

    name: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Answer:
    """What one model makes of an image."""

    guesses: tuple[Guess, ...]
    """The likeliest classes, best first."""
    rank: int | None
    """Rank of the first class with the true name, 1 for the likeliest; None if no class has it."""


@dataclass(frozen=True)
class Card:
    """One image of a sheet."""

    image: str
    """WebP file, in base64."""
    truth: str
    answers: tuple[Answer, ...]
    """One for each model of the sheet, in order."""

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB."""
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(self.image))).convert("RGB"))


@dataclass(frozen=True)
class Sheet:
    """Images, each with the likeliest classes of one or several models, all at one temperature."""

    models: tuple[str, ...]
    temperature: float
    classes: int
    """Classes among which a probability is distributed."""
    cards: tuple[Card, ...]


def make_sheet(
    images: npt.NDArray[np.uint8],
    truths: Sequence[str],
    scores: dict[str, Floats],
    names: Sequence[str],
    *,
    temperature: float,
) -> Sheet:
    """Lay out a sheet.

    Args:
        images: [n, H, W, 3] uint8, RGB.
        truths: n class names; a prediction is right if its name is the same.
        scores: model -> [n, K] similarities of its embeddings and the classes.
        names: K class names.
        temperature: of the softmax over the classes, > 0, the same for all models.

    Raises:
        ValueError: there is no image, or the counts do not agree.
    """
    wanted = [len(images), len(names)]
    shapes = {model: list(values.shape) for model, values in scores.items()}
    if not len(truths) == len(images) > 0 or any(shape != wanted for shape in shapes.values()):
        raise ValueError(
            f"make_sheet: {len(images)} images, {len(truths)} truths and {len(names)} names need scores of "
            f"{wanted}, 1 image or more; there are {shapes}"
        )
    cards = []
    for i, pixels in enumerate(images):
        answers = (_answer(values[i] / temperature, truths[i], names) for values in scores.values())
        cards.append(Card(webp(pixels), truths[i], tuple(answers)))
    return Sheet(tuple(scores), temperature, len(names), tuple(cards))


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Write a sheet as a JSON file, whose folder is made."""
    write_kept(asdict(sheet), path)


def read_sheet(path: Path) -> Sheet:
    """Read a sheet that `write_sheet` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    return read_kept(path, _sheet, "a sheet of beamclip")


def _sheet(content: Any) -> Sheet:
    cards = []
    for card in content["cards"]:
        answers = tuple(
            Answer(
                tuple(map(_guess, answer["guesses"])), None if (rank := answer["rank"]) is None else int(rank)
            )
            for answer in card["answers"]
        )
        cards.append(Card(checked_webp(card["image"]), str(card["truth"]), answers))
    models = tuple(map(str, content["models"]))
    return Sheet(models, float(content["temperature"]), int(content["classes"]), tuple(cards))


def _read_answer(content: Any) -> Answer:
    rank = content["rank"]
    return Answer(tuple(map(_guess, content["guesses"])), None if rank is None else int(rank))


def _guess(content: Any) -> Guess:
    return Guess(str(content["name"]), float(content["probability"]), bool(content["right"]))


def checked_webp(text: str) -> str:
    """Return a WebP file in base64 as it is.

    Raises:
        ValueError: it is something else.
    """
    content = base64.b64decode(text, validate=True)
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise ValueError("an image is not a WebP file")
    return text


def _answer(logits: Floats, truth: str, names: Sequence[str]) -> Answer:
    order = np.argsort(-logits, kind="stable").tolist()
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probability = powers / powers.sum()
    guesses = tuple(Guess(names[k], float(probability[k]), names[k] == truth) for k in order[:TOP])
    return Answer(guesses, next((i for i, k in enumerate(order, start=1) if names[k] == truth), None))


def webp(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image, uint8 [H, W, 3], as a WebP file in base64."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "WEBP", quality=WEBP_QUALITY)
    return base64.b64encode(out.getvalue()).decode()
