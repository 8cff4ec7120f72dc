"""Show the prompts of a class list, and what contexts do to their anchors."""

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.anchors import class_anchors, encoded_prompts
from beamclip.commands.console import print_stage, table
from beamclip.commands.context_effect import class_labels, context_effect
from beamclip.commands.contexts import check_contexts, context_sources, refuse_one_class
from beamclip.commands.options import PromptsConfig
from beamclip.commands.templates import Fit, compare_templates, embedded_by, say_misfit, with_templates
from beamclip.config import write_config
from beamclip.data.listing import list_shards
from beamclip.errors import InputError
from beamclip.evaluation.anchor_spread import Spread, class_means, closest_pairs, spread
from beamclip.models.clip import ImageTower, LoadedClip, load_clip, text_tower
from beamclip.option_texts import check_required
from beamclip.plots.contexts import plot_contexts
from beamclip.prompts.class_prompts import class_prompts, count_alike
from beamclip.prompts.classes import ClassEntry, load_classes
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.texts import nfc
from beamclip.runs.folder import CONFIG_FILE, PLOTS, make_run_dir, new_run_dir
from beamclip.summary import Summary, write_summary

PROMPTS_FILE, PAIRS_FILE, PICTURE = "prompts.csv", "pairs.csv", f"{PLOTS}/contexts.png"
LINES_A_CLASS = 8
"""Prompts printed for a class; prompts.csv has all of them."""


@dataclass(frozen=True)
class Compared:
    """Prompts and anchors of bare names, and of names with contexts; each tuple holds both, in this order."""

    classes: list[ClassEntry]
    num_contexts: tuple[int, int]
    prompts: tuple[list[list[str]], list[list[str]]]
    """Prompts of each class, in the order of `classes`."""
    means: tuple[Tensor, Tensor]
    """float32 [K, D], unit mean of each class's anchors."""


@dataclass(frozen=True)
class Pair:
    """Two classes whose bare names have close anchors."""

    places: tuple[int, int]
    """Indices in the class list."""
    label: str
    cosines: tuple[float, float]
    """Cosine of their anchors: of bare names, and with contexts."""


def show_prompts(config: PromptsConfig) -> Summary:
    """Compare anchors of bare names with those of the configured contexts; print, draw and write the result.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
    """
    began = time.perf_counter()
    classes, clip, tower = _load(config)
    config = replace(config, prompts=with_templates(config.prompts, clip))
    asked = _asked(config.show, classes)
    run_dir = new_run_dir(config.out, "prompts")
    make_run_dir(run_dir)
    write_config(config, run_dir / CONFIG_FILE)
    cache = run_dir.parent / "anchors"
    compared = _compare(config, classes, clip, cache)
    pairs = _closest(compared, config.pairs)
    spreads = [spread(each) for each in compared.means]
    _write_prompts(run_dir / PROMPTS_FILE, compared)
    _write_pairs(run_dir / PAIRS_FILE, compared, pairs)
    effect = context_effect(classes, config.prompts, compared.means, [pair.places for pair in pairs])
    plot_contexts(effect, run_dir / PICTURE)
    _print_prompts(asked or list(pairs[0].places), compared)
    _print_pairs(pairs, compared.num_contexts[1])
    _print_spread(spreads, compared)
    fits = _compare_templates(config, classes, clip, tower, cache)
    _print_fits(fits, clip)
    summary = _summary(began, compared, spreads, fits)
    write_summary(run_dir, summary)
    print(f"{run_dir}: {PROMPTS_FILE}  {PAIRS_FILE}  {PICTURE}  summary.json")
    return summary


def _load(config: PromptsConfig) -> tuple[list[ClassEntry], LoadedClip, ImageTower]:
    check_required(config)
    assert config.classes is not None, "check_required() refuses it"
    classes = load_classes(config.classes)
    refuse_one_class(classes)
    check_contexts(classes, config.prompts, _data(config), allow_missing=config.allow_missing_shards)
    if config.data is not None:
        list_shards(config.data, allow_missing=config.allow_missing_shards)
    clip = load_clip(str(config.teacher))
    return classes, text_tower(clip), clip.image_tower


def _data(config: PromptsConfig) -> list[str]:
    return [config.data] if config.data is not None else []


def _compare(config: PromptsConfig, classes: list[ClassEntry], clip: LoadedClip, cache: Path) -> Compared:
    external_sources = context_sources(
        classes, config.prompts, _data(config), cache, allow_missing=config.allow_missing_shards
    )
    bare, chosen = replace(config.prompts, num_contexts=0), config.prompts

    def means(setting: PromptConfig) -> Tensor:
        # Not class_anchors, which refuses classes that are all alike: bare names may be.
        prompts = class_prompts(classes, setting, external_sources)
        anchors, _ = encoded_prompts(prompts, setting.anchor_reduce, clip, WorkersConfig(), cache)
        return class_means(anchors, len(classes))

    with_contexts = class_anchors(classes, chosen, external_sources, clip, WorkersConfig(), cache)
    return Compared(
        classes,
        (0, chosen.num_contexts),
        (class_prompts(classes, bare, external_sources), class_prompts(classes, chosen, external_sources)),
        (means(bare), class_means(with_contexts, len(classes))),
    )


def _compare_templates(
    config: PromptsConfig, classes: list[ClassEntry], clip: LoadedClip, tower: ImageTower, cache: Path
) -> list[Fit]:
    """Measure on some images of --data how well sets of templates fit the teacher; empty without --data."""
    if config.data is None:
        return []
    workers = WorkersConfig()
    shards = list_shards(config.data, allow_missing=config.allow_missing_shards)
    images = embedded_by(tower, shards, workers)()
    return compare_templates(config.prompts, classes, clip, images, workers, cache)


def _closest(compared: Compared, most: int) -> list[Pair]:
    labels = class_labels(compared.classes)
    return [
        Pair(
            (a, b),
            f"{labels[a]} / {labels[b]}",
            (
                float(compared.means[0][a] @ compared.means[0][b]),
                float(compared.means[1][a] @ compared.means[1][b]),
            ),
        )
        for a, b in closest_pairs(compared.means[0], most)
    ]


def _asked(names: Sequence[str], classes: list[ClassEntry]) -> list[int]:
    """Return the indices of the classes with these names or ids; a name gives all classes that have it."""
    found = []
    for name in map(nfc, names):
        places = [i for i, entry in enumerate(classes) if name in (entry.id, entry.name)]
        if not places:
            near = [entry.name for entry in classes if name.lower() in entry.name.lower()][:3]
            hint = f" Some names contain it: {', '.join(near)}." if near else ""
            raise InputError(f"--show {name!r}: no class has this name or id.{hint}")
        found += places
    return found


def _print_prompts(places: Sequence[int], compared: Compared) -> None:
    for place in dict.fromkeys(places):
        print_stage("class", f"{compared.classes[place].name} ({compared.classes[place].id})")
        for prompts, heading in zip(compared.prompts, ("bare", "contexts"), strict=True):
            for line, prompt in enumerate(prompts[place][:LINES_A_CLASS]):
                print_stage("" if line else heading, prompt)
            if len(prompts[place]) > LINES_A_CLASS:
                print_stage("", f"... and {len(prompts[place]) - LINES_A_CLASS} more")
    print()


def _print_pairs(pairs: list[Pair], contexts: int) -> None:
    rows = [["closest pairs of bare names", "cosine", f"{contexts} contexts", "change"]]
    for pair in pairs:
        bare, moved = pair.cosines
        rows.append([pair.label, f"{bare:.3f}", f"{moved:.3f}", f"{moved - bare:+.3f}"])
    table(rows)
    print()


def _print_fits(fits: list[Fit], clip: LoadedClip) -> None:
    print()
    if not fits:
        print_stage("templates", "give --data SHARDS to compare sets of templates on images")
        return
    rows = [["templates, bare names", "what predictions say about an image, nats"]]
    table(rows + [[fit.label, f"{fit.nats:.3f}"] for fit in fits])
    say_misfit(fits, clip)


def _print_spread(spreads: list[Spread], compared: Compared) -> None:
    headings = {
        "mean_cosine": "cosine of two classes, mean",
        "nearest_cosine": "cosine of a class and its nearest, mean",
        "effective_rank": "effective rank",
    }
    rows = [["anchors", "bare", f"{compared.num_contexts[1]} contexts"]]
    for name, heading in headings.items():
        rows.append([heading, *(f"{getattr(each, name):.3f}" for each in spreads)])
    rows.append(["classes that share their prompts", *(f"{count_alike(p)[1]:,}" for p in compared.prompts)])
    table(rows)


def _write_prompts(path: Path, compared: Compared) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "num_contexts", "prompt"])
        for number, prompts in zip(compared.num_contexts, compared.prompts, strict=True):
            for entry, own in zip(compared.classes, prompts, strict=True):
                writer.writerows([entry.id, entry.name, number, prompt] for prompt in own)


def _write_pairs(path: Path, compared: Compared, pairs: list[Pair]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id_a", "name_a", "id_b", "name_b", "cosine_bare", "cosine_contexts"])
        for pair in pairs:
            entries = [compared.classes[place] for place in pair.places]
            named = [text for entry in entries for text in (entry.id, entry.name)]
            writer.writerow([*named, *(f"{cosine:.6f}" for cosine in pair.cosines)])


def _summary(began: float, compared: Compared, spreads: list[Spread], fits: list[Fit]) -> Summary:
    bare, chosen = (asdict(each) for each in spreads)
    return Summary(
        command="prompts",
        status="finished",
        wall_seconds=time.perf_counter() - began,
        metrics={**{f"bare_{name}": value for name, value in bare.items()}, **chosen},
        paths={"prompts": PROMPTS_FILE, "pairs": PAIRS_FILE, "plots": PLOTS},
        stages={
            "classes": len(compared.classes),
            "prompts": sum(map(len, compared.prompts[1])),
            "alike": count_alike(compared.prompts[1])[1],
            "template_nats": {fit.label: fit.nats for fit in fits},
        },
    )
