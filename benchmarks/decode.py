"""Decoding for training: images per second on one core for each way, and how each way changes the features.

python benchmarks/decode.py [--emoji FOLDER --teacher MODEL]

Every way decodes an image, takes the same random crop and resizes it; the ways take turns in one thread, and
CPU time is measured. With a teacher (a run, an open_clip directory or address), its features of the crops are
compared with those of Pillow's. With a folder of emoji (pairs.parquet, images/), emoji are compared too.
"""

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from support.reports import circumstances
from torchvision.io import decode_jpeg as torchvision_decode_jpeg

from beamclip.commands.console import table
from beamclip.corpus.drawing import draw_scene
from beamclip.corpus.scenes import draw_pair
from beamclip.corpus.symbols import all_symbols
from beamclip.data.config import Augmentation
from beamclip.data.decode import decode_image, is_plain_jpeg, jpeg_pixels, pixels_of
from beamclip.data.image_headers import judge
from beamclip.data.transforms import (
    CROP_DRAWS,
    load_training_image,
    random_crop_box,
    reduction_for,
    resize_crop,
    sample_uniforms,
)
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.models.teacher import Teacher
from beamclip.summary import library_versions
from beamclip.training.process import prepare_process

Pixels = NDArray[np.uint8]
Way = Callable[[bytes, NDArray[np.float32], int], Pixels]
"""A way to load a crop: (encoded, draws, size) -> uint8 [size, size, 3]."""

CONFIG = Augmentation(scaled_decoding=False)
QUALITY = 90
"""Quality of the JPEG and WebP files."""
DISTINCT = 16
"""Pictures that a round goes through in each case."""
COMPARED = 192
"""Pictures of each kind whose crops are compared."""
SPEED_CASES = ((64, 64), (64, 224), (256, 224), (1024, 224))
"""Sides of the source and of the crop, pixels."""
LIKENESS_CASES = ((256, 48), (256, 224), (1024, 48), (1024, 224))
TARGET = 1500
"""Wanted images per second on one core, from JPEG files of 256 px to crops of 224 px."""


def by_pillow(encoded: bytes, draws: NDArray[np.float32], size: int) -> Pixels:
    """Load a crop with Pillow alone: the reference for the other ways."""
    image = decode_image(encoded)
    box = random_crop_box(image.width, image.height, draws.tolist(), CONFIG)
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BICUBIC))


def reduced(encoded: bytes, draws: NDArray[np.float32], size: int, *, margin: float) -> Pixels:
    """Load a crop by scaled decoding, which leaves it at least `margin` times `size` before it is resized.

    Raises:
        ValueError: the image is not a plain JPEG.
    """
    image = judge(encoded)
    if not is_plain_jpeg(image):
        raise ValueError("only a JPEG can be decoded at a smaller scale")
    box = random_crop_box(image.width, image.height, draws.tolist(), CONFIG)
    reduction = reduction_for(min(box[2] - box[0], box[3] - box[1]), size, margin)
    pixels = pixels_of(image) if reduction == 1 else jpeg_pixels(image, reduction)
    left, upper, right, lower = (round(edge / reduction) for edge in box)
    return resize_crop(pixels[upper:lower, left:right], size)


def by_opencv(encoded: bytes, draws: NDArray[np.float32], size: int, *, interpolation: int) -> Pixels:
    """Load a crop with OpenCV alone, with one of its interpolations, as img2dataset resizes."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    left, upper, right, lower = random_crop_box(pixels.shape[1], pixels.shape[0], draws.tolist(), CONFIG)
    return cv2.resize(pixels[upper:lower, left:right], (size, size), interpolation=interpolation)


PILLOW, FAITHFUL = "Pillow", "beamclip"
WAYS: dict[str, Way] = {
    PILLOW: by_pillow,
    FAITHFUL: partial(load_training_image, config=CONFIG),
    **{f"beamclip, scaled, margin {margin:g}": partial(reduced, margin=margin) for margin in (2.0, 1.5, 1.0)},
    "OpenCV, INTER_CUBIC": partial(by_opencv, interpolation=cv2.INTER_CUBIC),
    "OpenCV, INTER_AREA": partial(by_opencv, interpolation=cv2.INTER_AREA),
}

DECODERS: dict[str, Callable[[bytes], object]] = {
    "Pillow": lambda encoded: np.asarray(Image.open(io.BytesIO(encoded))),
    "simplejpeg": simplejpeg.decode_jpeg,
    "torchvision": lambda encoded: torchvision_decode_jpeg(
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    ),
    "OpenCV": lambda encoded: cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB),
}
"""Decoders of JPEG files, without crop and resize."""


@dataclass(frozen=True)
class Speed:
    """Images per second of CPU time of one thread."""

    format: str
    source: int
    crop: int
    way: str
    quartiles: tuple[float, float, float]


@dataclass(frozen=True)
class Likeness:
    """How like crops by one way are to those by Pillow."""

    kind: str
    source: int
    crop: int
    way: str
    psnr: float
    """Peak signal-to-noise ratio of the pixels, dB, over all images."""
    cosine_mean: float | None
    """Mean cosine of the teacher's features; None without a teacher."""
    cosine_least: float | None
    """Least cosine of the teacher's features; None without a teacher."""


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=Path, help="folder with pairs.parquet and images/")
    parser.add_argument("--teacher", help="model whose features are compared")
    parser.add_argument("--rounds", type=int, default=9, help="times that everything is timed in turn")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks/decode.json"), help="to write")
    options = parser.parse_args()
    prepare_process(threads=1, seed=0)
    cv2.setNumThreads(1)
    speeds = [*time_decoders(options.rounds), *time_ways(options.rounds)]
    clip = load_clip(options.teacher) if options.teacher else None
    likenesses = compare_ways(options.emoji, clip)
    for rows in (speed_table(speeds), likeness_table(likenesses)):
        table(rows)
        print()
    optional = (("--emoji FOLDER", options.emoji), ("--teacher MODEL", options.teacher))
    words = ["python benchmarks/decode.py", *(flag for flag, value in optional if value)]
    result = {
        "circumstances": circumstances(" ".join([*words, f"--rounds {options.rounds}"])).splitlines(),
        "versions": {**library_versions(), "simplejpeg": simplejpeg.__version__, "opencv": cv2.__version__},
        "teacher": teacher_in_words(clip) if clip else None,
        "target_images_per_second": TARGET,
        "images_per_second": [asdict(speed) for speed in speeds],
        "likeness": [asdict(likeness) for likeness in likenesses],
    }
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(result, indent=1) + "\n")
    print(f"results written to {options.report}")


def teacher_in_words(clip: LoadedClip) -> str:
    """Describe a teacher: `resnet18 at 48 px, 0123456789ab`, with digits of its fingerprint."""
    vision = clip.model_cfg["vision_cfg"]
    name = vision.get("timm_model_name", f"{vision.get('layers')} layers of width {vision.get('width')}")
    return f"{name} at {clip.image_size} px, {clip.fingerprint[:12]}"


def time_decoders(rounds: int) -> list[Speed]:
    """Time the decoders on JPEG files, without crop and resize."""
    speeds = []
    for source in sorted({source for source, _ in SPEED_CASES}):
        files = [encode(picture, "JPEG") for picture in islice(photos(source), DISTINCT)]
        ways = {name: partial(_decode_all, decode, files) for name, decode in DECODERS.items()}
        for name, quartiles in timed(ways, rounds).items():
            speeds.append(Speed("JPEG, decoded only", source, source, name, quartiles))
    return speeds


def _decode_all(decode: Callable[[bytes], object], files: list[bytes]) -> None:
    for file in files:
        decode(file)


def time_ways(rounds: int) -> list[Speed]:
    """Time each way to decode, crop and resize."""
    draws = crop_draws(DISTINCT)
    speeds = []
    for kind in ("JPEG", "PNG", "WEBP"):
        for source, crop in SPEED_CASES:
            files = [encode(picture, kind) for picture in islice(photos(source), DISTINCT)]
            fitting = {name: way for name, way in WAYS.items() if kind == "JPEG" or "scaled" not in name}
            ways = {name: partial(_load_all, way, files, draws, crop) for name, way in fitting.items()}
            for name, quartiles in timed(ways, rounds).items():
                speeds.append(Speed(kind, source, crop, name, quartiles))
            print(f"timed: {kind}, {source} -> {crop} px", flush=True)
    return speeds


def _load_all(way: Way, files: list[bytes], draws: NDArray[np.float32], size: int) -> None:
    for encoded, numbers in zip(files, draws, strict=True):
        way(encoded, numbers, size)


def timed(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return quartiles over rounds of images per second; in its turn, each way loads DISTINCT images."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = time.thread_time()
            way()
            if turn:
                speeds[name].append(DISTINCT / (time.thread_time() - began))
    quartiles = {name: statistics.quantiles(found, n=4) for name, found in speeds.items()}
    return {name: (low, middle, high) for name, (low, middle, high) in quartiles.items()}


def compare_ways(emoji: Path | None, clip: LoadedClip | None) -> list[Likeness]:
    """Compare crops by every way with Pillow's, for each kind of picture, from JPEG files."""
    teacher = Teacher(clip) if clip else None
    draws = crop_draws(COMPARED)
    kinds = {"photographs": photos, "symbols": symbols, "noise": noise}
    if emoji:
        kinds["emoji"] = partial(drawings, emoji)
    found = []
    for kind, pictures in kinds.items():
        for source in sorted({source for source, _ in LIKENESS_CASES}):
            files = [encode(picture, "JPEG") for picture in islice(pictures(source), COMPARED)]
            for crop in (crop for of, crop in LIKENESS_CASES if of == source):
                crops = {name: _crops(way, files, draws, crop) for name, way in WAYS.items()}
                reference = crops.pop(PILLOW)
                found += [
                    Likeness(
                        kind, source, crop, name, psnr(own, reference), *cosines(own, reference, teacher)
                    )
                    for name, own in crops.items()
                ]
        print(f"compared: {kind}", flush=True)
    return found


def _crops(way: Way, files: list[bytes], draws: NDArray[np.float32], size: int) -> Pixels:
    """Load all crops, [N, size, size, 3]."""
    return np.stack([way(encoded, numbers, size) for encoded, numbers in zip(files, draws, strict=True)])


def psnr(own: Pixels, reference: Pixels) -> float:
    """Return the peak signal-to-noise ratio, dB."""
    error = np.square(own.astype(np.float64) - reference).mean()
    return float(10.0 * np.log10(255.0**2 / error))


def cosines(own: Pixels, reference: Pixels, teacher: Teacher | None) -> tuple[float | None, float | None]:
    """Return mean and least cosine of a teacher's features of two versions of the same images."""
    if teacher is None:
        return None, None
    features = []
    for pixels in (own, reference):
        batches = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().split(64)
        features.append(torch.cat([teacher.encode_image(batch) for batch in batches]))
    found = (features[0] * features[1]).sum(dim=1)
    return float(found.mean()), float(found.min())


def crop_draws(count: int) -> NDArray[np.float32]:
    """Draw the random numbers of so many crops, float32 [count, CROP_DRAWS]."""
    return sample_uniforms(0, 0, [f"{number:09d}" for number in range(count)])[:, :CROP_DRAWS]


def encode(picture: Image.Image, kind: str) -> bytes:
    """Encode a picture as the bytes of a file of this kind."""
    file = io.BytesIO()
    picture.save(file, kind, quality=QUALITY)
    return file.getvalue()


def photos(side: int) -> Iterator[Image.Image]:
    """Yield square parts of two photographs of 640 x 427 px; larger ones are continued by mirroring."""
    pictures = load_sample_images().images
    rng = np.random.default_rng(0)
    for number in iter(lambda: int(rng.integers(len(pictures))), None):
        whole = pictures[number]
        if side > min(whole.shape[:2]):
            whole = np.pad(whole, ((0, side), (0, side), (0, 0)), mode="symmetric")
        cut = max(side, int(rng.integers(300, 427)) if side < 300 else 0)
        upper, left = (int(rng.integers(edge - cut + 1)) for edge in whole.shape[:2])
        part = Image.fromarray(whole[upper : upper + cut, left : left + cut])
        yield part.resize((side, side), Image.Resampling.LANCZOS)


def symbols(side: int) -> Iterator[Image.Image]:
    """Yield symbols of the embedded corpus, drawn at this size: plain areas and hard edges."""
    rng = random.Random(0)
    while True:
        symbol = rng.choice(all_symbols())
        yield draw_scene(symbol.char, "sans", draw_pair(symbol, rng)[0], side)


def noise(side: int) -> Iterator[Image.Image]:
    """Yield noise whose amplitudes fall with the frequency, as in photographs, but harder to downscale."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    while True:
        spectrum = rng.standard_normal((3, *frequency.shape)) * np.exp(
            2j * np.pi * rng.random(frequency.shape)
        )
        planes = np.fft.irfft2(spectrum / frequency, s=(side, side))
        levels = 128.0 + 45.0 * planes / planes.std()
        yield Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def drawings(folder: Path, side: int) -> Iterator[Image.Image]:
    """Yield emoji of 64 px, resized to this side, in random order."""
    files = sorted((folder / "images").rglob("*.png"))
    random.Random(0).shuffle(files)
    for file in files:
        yield decode_image(file.read_bytes()).resize((side, side), Image.Resampling.BICUBIC)


def speed_table(speeds: list[Speed]) -> list[list[str]]:
    """Build a row for each case and way."""
    rows = [["images/s of one core", "source", "crop", "way", "median", "quartiles"]]
    for each in speeds:
        low, middle, high = each.quartiles
        sides = (str(each.source), str(each.crop))
        rows.append([each.format, *sides, each.way, f"{middle:,.0f}", f"{low:,.0f} to {high:,.0f}"])
    return rows


def likeness_table(likenesses: list[Likeness]) -> list[list[str]]:
    """Build a row for each case and way."""
    rows = [["likeness to Pillow", "source", "crop", "way", "PSNR, dB", "cosine, mean", "least"]]
    for each in likenesses:
        cosines = ("" if c is None else f"{c:.4f}" for c in (each.cosine_mean, each.cosine_least))
        rows.append([each.kind, str(each.source), str(each.crop), each.way, f"{each.psnr:.1f}", *cosines])
    return rows


if __name__ == "__main__":
    main()
