"""The embedded corpus: captioned drawings of named Unicode symbols, made on the spot with no downloads.

It lets a whole run - ingest, teacher, distillation, evaluation - be tried on two cores in minutes. It is a
small, clean, synthetic world: figures reached on it say that the machinery works, not how a model does on
photographs.

Three splits:

- `train`: the training classes, drawn in the training styles.
- `test`: the same classes, each equally often, drawn in a held-out style only.
- `novel`: about 5 % of the classes, fixed by a hash of their id and never trained on, in training styles.

What "held-out style" means. Training styles are DejaVu Sans plain, with a drop shadow, with a sticker edge,
as an outline, as an outline filled with a wash, and in dots, and DejaVu Sans Bold where its drawing differs:
so many that a model learns shapes rather than fillings. About half of the classes are tested in another type
family, STIX (`stix`), and a few in DejaVu Serif (`serif`), always with a drawing that differs measurably
from the training ones. The rest, mostly pictograms, exist in DejaVu Sans alone among the fonts at hand:
they are tested in the same outlines with another rendering, contour and hatching instead of fill
(`engraved`). That is a shift of texture and not of shape; the `style` column tells the three apart.
"""

import math
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from beamclip.corpus.common_symbols import SymbolList, listed_symbols
from beamclip.corpus.drawing import draw_scene
from beamclip.corpus.scenes import draw_pair
from beamclip.corpus.symbols import Symbol, all_symbols
from beamclip.errors import InputError
from beamclip.ranges import Count, Natural, Range, check_ranges

Split = Literal["train", "test", "novel"]

VERSION = 3
"""Increased whenever the same seed no longer gives the same corpus."""

_FOLDER_SIZE = 1000
# Starting processes costs seconds; below this many images one process is done sooner.
_PARALLEL_FROM = 20_000
_RECORD = "corpus.yaml"
_ROW = pa.schema([(name, pa.string()) for name in ("path", "caption", "label", "style", "split")])


@dataclass(frozen=True)
class GlyphConfig:
    """Symbols, size and seed of the embedded corpus."""

    symbols: SymbolList = "all"
    """all: every symbol, under a name that tells it from all others. common: 64 that anybody recognises,
    under everyday names; its novel split is empty."""
    images: Count = 8000
    """Training images; below the number of classes, only as many classes as images are used."""
    test_images: Count = 2000
    """Test images, all in held-out styles; the novel split gets as many per class, rounded up."""
    image_size: Annotated[int, Range(16)] = 64
    """Side of the square images in pixels."""
    corpus_seed: Natural = 0
    """Seed of all images and captions. With all classes in use, a larger corpus begins with the images of a
    smaller one of the same seed."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class CorpusPaths:
    """Paths of the parts of a written corpus."""

    root: Path
    """The corpus folder; image paths in the tables are relative to it."""
    train: Path
    """Parquet table of training images: path, caption, label, style, split."""
    test: Path
    """Parquet table of images in the held-out styles, with the columns of `train`."""
    novel: Path
    """Parquet table of images of classes that are never trained on, with the columns of `train`."""
    classes: Path
    """Class list of the train and test splits."""
    novel_classes: Path
    """Class list of the novel split."""


@dataclass(frozen=True)
class _Plan:
    """Which symbols a split draws, in which of their styles, how often."""

    config: GlyphConfig
    split: Split
    symbols: tuple[Symbol, ...]
    count: int


def glyph_classes() -> list[dict[str, Any]]:
    """Return all classes, novel ones included, as mappings of id, name and parents (nearest first)."""
    return [_class_entry(symbol) for symbol in all_symbols()]


def write_corpus(config: GlyphConfig, out: Path, workers: int | None = None) -> CorpusPaths:
    """Write the corpus, unless `out` holds the same corpus already.

    It is written beside `out` and renamed, so `out` is complete whenever it exists.

    Args:
        config: what to draw.
        out: folder to make.
        workers: processes; None takes one per processor for a large corpus and this process for a small one.
            More than one are spawned, so a script that asks for them needs a `__main__` guard.

    Returns:
        The paths of its tables and class lists.

    Raises:
        InputError: `out` exists and holds something else.
    """
    paths = _paths(out)
    record = {"version": VERSION, **asdict(config)}
    if out.exists():
        _check_same_corpus(out, record)
        return paths
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        draft = Path(scratch, out.name)
        _write_parts(config, draft, workers)
        draft.joinpath(_RECORD).write_text(yaml.safe_dump(record, sort_keys=False))
        draft.rename(out)
    return paths


def write_url_list(corpus: Path, split: str, address: str, out: Path) -> Path:
    """Write a URL list, parquet with url, caption, label and style, for a corpus served at `address`.

    Returns:
        `out`.

    Raises:
        InputError: the corpus has no such split.
    """
    table_path = corpus / f"{split}.parquet"
    if not table_path.is_file():
        raise InputError(f"{table_path}: no such table. Give a corpus folder and train, test or novel.")
    table = pq.read_table(table_path)
    urls = [f"{address.rstrip('/')}/{quote(path)}" for path in table["path"].to_pylist()]
    columns = {"url": urls, **{name: table[name] for name in ("caption", "label", "style")}}
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out)
    return out


def _paths(root: Path) -> CorpusPaths:
    return CorpusPaths(
        root=root,
        train=root / "train.parquet",
        test=root / "test.parquet",
        novel=root / "novel.parquet",
        classes=root / "classes.yaml",
        novel_classes=root / "novel_classes.yaml",
    )


def _check_same_corpus(out: Path, record: dict[str, Any]) -> None:
    path = out / _RECORD
    found = yaml.safe_load(path.read_text()) if path.is_file() else "no corpus"
    if found != record:
        raise InputError(f"{out} exists and holds {found}, not {record}. Remove it or give another folder.")


def _write_parts(config: GlyphConfig, root: Path, workers: int | None) -> None:
    paths = _paths(root)
    plans = _plans(config)
    for plan, table in zip(plans, (paths.train, paths.test, paths.novel), strict=True):
        rows = _write_images(plan, root, workers)
        pq.write_table(pa.Table.from_pylist(rows, _ROW), table)
    for plan, classes in ((plans[0], paths.classes), (plans[2], paths.novel_classes)):
        entries = [_class_entry(symbol) for symbol in plan.symbols]
        classes.write_text(yaml.safe_dump(entries, sort_keys=False))


def _plans(config: GlyphConfig) -> tuple[_Plan, _Plan, _Plan]:
    listed = listed_symbols(config.symbols)
    known = [symbol for symbol in listed if not symbol.novel]
    if config.images < len(known):
        chosen = set(_rng(config, "classes").sample(range(len(known)), config.images))
        known = [symbol for index, symbol in enumerate(known) if index in chosen]
    novel = tuple(symbol for symbol in listed if symbol.novel)
    novel_count = len(novel) * math.ceil(config.test_images / len(known))
    return (
        _Plan(config, "train", tuple(known), config.images),
        _Plan(config, "test", tuple(known), config.test_images),
        _Plan(config, "novel", novel, novel_count),
    )


def _write_images(plan: _Plan, root: Path, workers: int | None) -> list[dict[str, str]]:
    """Draw a split, folder by folder; return its rows in the order of the images."""
    folders = range(math.ceil(plan.count / _FOLDER_SIZE))
    write = partial(_write_folder, plan, root)
    if workers is None:
        workers = os.cpu_count() or 1 if plan.count >= _PARALLEL_FROM else 1
    if workers == 1:
        return [row for folder in folders for row in write(folder)]
    # Spawned, not forked: the caller may hold threads of torch or Ray.
    with get_context("spawn").Pool(min(workers, len(folders))) as pool:
        return [row for rows in pool.imap(write, folders) for row in rows]


def _write_folder(plan: _Plan, root: Path, folder: int) -> list[dict[str, str]]:
    where = f"images/{plan.split}/{folder:04d}"
    root.joinpath(where).mkdir(parents=True)
    rows = []
    for index, symbol in _schedule(plan, folder * _FOLDER_SIZE, min(plan.count, (folder + 1) * _FOLDER_SIZE)):
        rng = _rng(plan.config, f"{plan.split}/{index}")
        style = symbol.held_out_style if plan.split == "test" else rng.choice(symbol.train_styles)
        scene, caption = draw_pair(symbol, rng)
        path = f"{where}/{index:07d}.png"
        # Level 1 writes several times faster than the default for files a few percent larger.
        draw_scene(symbol.char, style, scene, plan.config.image_size).save(root / path, compress_level=1)
        rows.append(
            {"path": path, "caption": caption, "label": symbol.id, "style": style, "split": plan.split}
        )
    return rows


def _schedule(plan: _Plan, start: int, stop: int) -> Iterator[tuple[int, Symbol]]:
    """Yield index and symbol of images [start, stop): each round has every class once, in a new order."""
    size = len(plan.symbols)
    for turn in range(start // size, math.ceil(stop / size)):
        order = list(plan.symbols)
        _rng(plan.config, f"{plan.split}/order/{turn}").shuffle(order)
        for index in range(max(start, turn * size), min(stop, (turn + 1) * size)):
            yield index, order[index - turn * size]


def _rng(config: GlyphConfig, purpose: str) -> random.Random:
    # Seeding with text goes through SHA-512: streams of nearby seeds and indices are unrelated.
    return random.Random(f"beamclip/{VERSION}/{config.corpus_seed}/{purpose}")


def _class_entry(symbol: Symbol) -> dict[str, Any]:
    return {"id": symbol.id, "name": symbol.name, "parents": list(symbol.parents)}
