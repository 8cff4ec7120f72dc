"""The embedded corpus: what is drawn, what is said about it, and how it is laid out on disk."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from fontTools.ttLib import TTFont
from matplotlib import get_data_path
from PIL import Image

from beamclip.corpus import glyphs
from beamclip.corpus.common_symbols import COMMON_NAMES, common_symbols
from beamclip.corpus.drawing import STYLES, Scene, draw_scene, glyph_layers
from beamclip.corpus.glyphs import CorpusPaths, GlyphConfig, glyph_classes, write_corpus, write_url_list
from beamclip.corpus.scenes import with_article
from beamclip.corpus.symbols import Symbol, all_symbols
from beamclip.errors import InputError
from beamclip.prompts.classes import load_classes

CONFIG = GlyphConfig(images=1010, test_images=900, corpus_seed=3)
TINY = GlyphConfig(images=40, test_images=20)
TRAIN_STYLES = {"sans", "bold", "shadow", "sticker", "outline", "wash", "halftone"}
HELD_OUT_STYLES = {"stix", "serif", "engraved"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusPaths:
    return write_corpus(CONFIG, tmp_path_factory.mktemp("glyphs") / "corpus")


def read_rows(table: Path) -> list[dict[str, Any]]:
    return pq.read_table(table).to_pylist()


def all_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def shape_vector(symbol: Symbol, style: str) -> np.ndarray:
    return shape_vector_of(symbol.char, style)


def shape_vector_of(char: str, style: str) -> np.ndarray:
    """The inked shape of a character, centred and of unit length, so that a dot product is a correlation."""
    ink = np.asarray(dict(glyph_layers(char, style, 48))["ink"], dtype=np.float64).ravel()
    ink -= ink.mean()
    return ink / np.linalg.norm(ink)


def test_one_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    one, same = (all_bytes(write_corpus(TINY, tmp_path / name).root) for name in ("one", "same"))
    other_config = GlyphConfig(images=40, test_images=20, corpus_seed=1)
    other = all_bytes(write_corpus(other_config, tmp_path / "other").root)
    assert one == same
    first_image = "images/train/0000/0000000.png"
    assert one[first_image] != other[first_image]


@pytest.mark.slow
def test_two_processes_write_the_first_images_of_a_larger_corpus(corpus: CorpusPaths, tmp_path: Path) -> None:
    shorter = GlyphConfig(images=1001, test_images=10, corpus_seed=CONFIG.corpus_seed)
    paths = write_corpus(shorter, tmp_path / "shorter", workers=2)
    rows = read_rows(paths.train)
    assert rows == read_rows(corpus.train)[:1001]
    assert all(
        (paths.root / row["path"]).read_bytes() == (corpus.root / row["path"]).read_bytes() for row in rows
    )


def test_counts_are_exact_and_images_are_square_rgb_with_something_on_them(corpus: CorpusPaths) -> None:
    tables = [read_rows(table) for table in (corpus.train, corpus.test, corpus.novel)]
    assert [len(rows) for rows in tables[:2]] == [1010, 900]
    paths = [row["path"] for rows in tables for row in rows]
    assert len(set(paths)) == len(paths) == sum(1 for _ in corpus.root.rglob("*.png"))
    for path in paths[::7]:
        with Image.open(corpus.root / path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
            assert np.asarray(image, dtype=float).std(axis=(0, 1)).max() > 5


def test_test_split_shows_every_training_class_equally_often_in_held_out_styles_only(
    corpus: CorpusPaths,
) -> None:
    train, test = read_rows(corpus.train), read_rows(corpus.test)
    counts = Counter(row["label"] for row in test)
    assert set(counts) == {row["label"] for row in train}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {row["style"] for row in train} == TRAIN_STYLES
    assert {row["style"] for row in test} == HELD_OUT_STYLES


def test_novel_classes_are_a_twentieth_and_never_in_training(corpus: CorpusPaths) -> None:
    novel = {row["label"] for row in read_rows(corpus.novel)}
    trained = {row["label"] for row in read_rows(corpus.train)}
    assert not novel & trained
    assert 0.03 < len(novel) / len(novel | trained) < 0.08
    assert {row["style"] for row in read_rows(corpus.novel)} <= TRAIN_STYLES


def test_novel_classes_do_not_depend_on_the_seed(corpus: CorpusPaths, tmp_path: Path) -> None:
    other = write_corpus(TINY, tmp_path / "other")
    assert other.novel_classes.read_bytes() == corpus.novel_classes.read_bytes()


def test_class_lists_load_and_hold_the_labels_of_their_splits(corpus: CorpusPaths) -> None:
    entries = load_classes(corpus.classes)
    assert {entry.id for entry in entries} == {row["label"] for row in read_rows(corpus.train)}
    assert {entry.id for entry in load_classes(corpus.novel_classes)} == {
        row["label"] for row in read_rows(corpus.novel)
    }
    knight = next(entry for entry in entries if entry.id == "U+265E")
    assert (knight.name, knight.parents) == ("solid chess knight", ("chess piece", "board game piece"))


def test_fewer_images_than_classes_use_fewer_classes(tmp_path: Path) -> None:
    paths = write_corpus(TINY, tmp_path / "tiny")
    labels = {row["label"] for row in read_rows(paths.train)}
    assert len(labels) == len(load_classes(paths.classes)) == 40
    assert {row["label"] for row in read_rows(paths.test)} < labels


def test_ids_and_names_are_unique() -> None:
    classes = glyph_classes()
    assert len(classes) > 500
    assert (
        len({entry["id"] for entry in classes}) == len({entry["name"] for entry in classes}) == len(classes)
    )


def test_captions_contain_the_class_name(corpus: CorpusPaths) -> None:
    names = {entry["id"]: entry["name"] for entry in glyph_classes()}
    rows = [row for table in (corpus.train, corpus.test, corpus.novel) for row in read_rows(table)]
    assert all(names[row["label"]] in row["caption"] for row in rows)
    assert len({row["caption"] for row in rows}) > 0.9 * len(rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("anchor", "an orange anchor"),
        ("crossed swords", "orange crossed swords"),
        ("skull and crossbones", "an orange skull and crossbones"),
        ("ace of spades", "an orange ace of spades"),
        ("maltese cross", "an orange maltese cross"),
    ],
)
def test_only_singular_names_get_an_article(name: str, expected: str) -> None:
    assert with_article(f"orange {name}", name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("umbrella", "an umbrella"),
        ("up arrow", "an up arrow"),
        ("euro sign", "a euro sign"),
        ("euler constant", "an euler constant"),
        ("universal recycling symbol", "a universal recycling symbol"),
        ("union sign", "a union sign"),
        ("unmarried partnership symbol", "an unmarried partnership symbol"),
        ("x in a rectangle box", "an x in a rectangle box"),
    ],
)
def test_the_article_follows_the_sound(name: str, expected: str) -> None:
    assert with_article(name, name) == expected


def test_common_symbols_are_drawn_under_their_own_names_and_none_is_novel(tmp_path: Path) -> None:
    config = GlyphConfig(symbols="common", images=128, test_images=64, image_size=32)
    paths = write_corpus(config, tmp_path / "common")
    entries = load_classes(paths.classes)
    assert [entry.name for entry in entries] == list(COMMON_NAMES.values())
    assert [chr(int(entry.id.removeprefix("U+"), 16)) for entry in entries] == list(COMMON_NAMES)
    assert len({entry.name for entry in entries}) == 64
    rows = read_rows(paths.train)
    assert set(Counter(row["label"] for row in rows).values()) == {2}
    names = {entry.id: entry.name for entry in entries}
    assert all(names[row["label"]] in row["caption"] for row in rows)
    assert read_rows(paths.novel) == yaml.safe_load(paths.novel_classes.read_text()) == []


def test_no_two_common_symbols_look_alike() -> None:
    for held_out in (False, True):
        symbols = common_symbols()
        shapes = np.stack([shape_vector(s, s.held_out_style if held_out else "sans") for s in symbols])
        likeness = np.triu(shapes @ shapes.T, k=1)
        first, second = np.unravel_index(likeness.argmax(), likeness.shape)
        assert likeness.max() < 0.95, (symbols[first].name, symbols[second].name)


def test_every_font_holds_the_symbols_it_is_asked_for() -> None:
    folder = Path(get_data_path(), "fonts", "ttf")
    held = {
        font: set(TTFont(folder / f"{font}.ttf").getBestCmap()) for font in {s.font for s in STYLES.values()}
    }
    for symbol in all_symbols():
        for style in (*symbol.train_styles, symbol.held_out_style):
            assert ord(symbol.char) in held[STYLES[style].font], (symbol.id, style)


def test_no_drawing_is_the_box_for_missing_glyphs() -> None:
    unassigned = "\U0010fffd"
    boxes = {style: shape_vector_of(unassigned, style) for style in ("sans", "bold", "serif")}
    for symbol in all_symbols():
        for style in {*symbol.train_styles, symbol.held_out_style} & set(boxes):
            assert shape_vector(symbol, style) @ boxes[style] < 0.97, (symbol.id, style)


def test_a_glyph_without_ink_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"STIXGeneral draws nothing for U\+10FFFD"):
        glyph_layers("\U0010fffd", "stix", 48)


def test_every_class_has_several_training_styles() -> None:
    for symbol in all_symbols():
        assert len(set(symbol.train_styles)) >= 3
        assert set(symbol.train_styles) <= TRAIN_STYLES
        assert symbol.held_out_style in HELD_OUT_STYLES


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [False, True])
def test_no_two_classes_look_the_same(held_out: bool) -> None:
    symbols = all_symbols()
    shapes = np.stack([shape_vector(s, s.held_out_style if held_out else "sans") for s in symbols])
    likeness = np.triu(shapes @ shapes.T, k=1)
    first, second = np.unravel_index(likeness.argmax(), likeness.shape)
    assert likeness.max() < 0.98, (symbols[first].name, symbols[second].name)


def test_held_out_drawings_differ_from_the_training_drawings() -> None:
    for symbol in all_symbols():
        held_out = shape_vector(symbol, symbol.held_out_style)
        for style in set(symbol.train_styles) & {"sans", "bold", "halftone"}:
            assert shape_vector(symbol, style) @ held_out < 0.97, (symbol.name, style)


def test_bold_is_a_training_style_only_where_it_differs() -> None:
    for symbol in all_symbols():
        if "bold" in symbol.train_styles:
            assert shape_vector(symbol, "bold") @ shape_vector(symbol, "sans") < 0.99, symbol.name


def test_positive_angles_tilt_to_the_left() -> None:
    def tip(angle: float) -> float:
        scene = Scene((0, 0, 0), (255, 255, 255), "plain", extent=0.8, angle=angle, centre=(0.5, 0.5))
        pixels = 255 - np.asarray(draw_scene("↑", "sans", scene, 64).convert("L"), dtype=float)
        top = pixels[:20].sum(axis=0)
        return float((top * np.arange(64)).sum() / top.sum())

    assert tip(12) < tip(0) - 2 < tip(-12) - 4


def test_an_existing_corpus_is_kept_and_another_configuration_is_refused(tmp_path: Path) -> None:
    paths = write_corpus(TINY, tmp_path / "corpus")
    before = paths.train.stat().st_mtime_ns
    assert write_corpus(TINY, tmp_path / "corpus") == paths
    assert paths.train.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="Remove it or give another folder"):
        write_corpus(GlyphConfig(images=41, test_images=20), tmp_path / "corpus")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no corpus"):
        write_corpus(TINY, tmp_path)


def test_an_interrupted_corpus_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Image.Image:
        raise KeyboardInterrupt

    monkeypatch.setattr(glyphs, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(TINY, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_url_lists_put_the_address_before_the_path(corpus: CorpusPaths, tmp_path: Path) -> None:
    out = write_url_list(corpus.root, "test", "http://127.0.0.1:8000/", tmp_path / "lists" / "urls.parquet")
    table = pq.read_table(out)
    assert table.column_names == ["url", "caption", "label", "style"]
    for listed, row in zip(table.to_pylist(), read_rows(corpus.test), strict=True):
        assert listed["url"] == f"http://127.0.0.1:8000/{row['path']}"
        assert {name: listed[name] for name in ("caption", "label", "style")}.items() <= row.items()


def test_a_url_list_of_an_unknown_split_is_refused(corpus: CorpusPaths, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"valid\.parquet: no such table"):
        write_url_list(corpus.root, "valid", "http://127.0.0.1", tmp_path / "urls.parquet")


@pytest.mark.parametrize("field", ["images", "test_images", "image_size", "corpus_seed"])
def test_impossible_sizes_are_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is -1"):
        GlyphConfig(**{field: -1})
