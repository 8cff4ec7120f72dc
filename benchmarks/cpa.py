"""Contexts: whether they help a teacher and its student, where, and by how much.

python benchmarks/cpa.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, tags, group, subgroup, split) and its images. Three kinds
of teacher are trained from scratch: one on names alone, one on names that now and then have a context beside
them, and one that also sees short names, the last words of the whole ones, which many classes share. Each
is scored zero-shot with anchors of bare names and of 1, 2 and 4 contexts from the taxonomy (subgroup, group
and tags), from words beside the names in captions, and from both; for each of these anchor sets, a student is
distilled from it. Scores are on drawings in a held-out style, over all classes and over the ambiguous ones.
Trials with a result in --out are not run again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from support.distilling import distilled
from support.emoji_pairs import Pairs, load_emoji, load_images
from support.options import of_trials, read_options
from support.paired import as_texts, difference, mean_on_test, on_test
from support.pretraining import Recipe, train
from support.reports import circumstances, markdown_table, write_figures
from support.trials import Result, Trial, keep_scores, run_trials
from torch import Tensor

from beamclip.commands.console import plural, table
from beamclip.data.cooccurrence import count_samples, ranked_words, words_of
from beamclip.evaluation.zeroshot import class_scores, topk_accuracy
from beamclip.losses.config import CsmConfig
from beamclip.models.teacher import Teacher
from beamclip.plots.style import BLUE, GREEN, MUTED, ORANGE, save_figure, styled
from beamclip.prompts.anchors import Anchors, encode_anchors
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.training.config import OptimConfig

CONTEXT_LENGTH = 32
TEXT = {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 1}
BASE = Recipe(
    model="nano-resnet10t",
    batch_size=128,
    optim=OptimConfig(epochs=16, lr=1e-3),
    model_changes={"text_cfg": TEXT},
)
NAMES, CONTEXTS, SHORT = "names", "names and contexts", "short names and contexts"
TEACHERS = {NAMES: BASE, CONTEXTS: BASE, SHORT: BASE}
"""Kinds of teachers, named after what their captions are made of; SHORT also shortens the class list."""
SOURCES = {
    "taxonomy": "hierarchy+file",
    "captions": "captions",
    "both": "hierarchy+file+captions",
}
COUNTS = (1, 2, 4)
SETTINGS = {
    kind: [
        ("bare names", 0),
        # With short names, words beside them in captions are the same for all classes of one name.
        *((source, count) for source in (SOURCES if kind != SHORT else ("taxonomy",)) for count in COUNTS),
    ]
    for kind in TEACHERS
}
COLOURS = dict(zip(SOURCES, (BLUE, ORANGE, GREEN), strict=True))

STUDENT = "test_resnet"
CSM = CsmConfig(tau_teacher=0.04, tau_student=0.05)
STUDENT_OPTIM = OptimConfig(epochs=6, lr=2e-3)
STUDENT_BATCH = 64
TEMPERATURE = 0.01
FIGURES = {
    "teacher_all": "teacher, all",
    "teacher_ambiguous": "teacher, ambiguous",
    "student_all": "student, all",
    "student_ambiguous": "student, ambiguous",
    "student_bare": "student, all, by bare names",
}


@dataclass(frozen=True)
class Emoji:
    """The data of a trial: pairs of the training and the test split, and the class list."""

    train: Pairs
    test: Pairs
    classes: list[ClassEntry]
    ambiguous: list[int]
    """Indices of the ambiguous classes."""


def main() -> None:
    """Run what is missing, and write table, plot and report."""
    options = read_options("cpa", __doc__, seeds=5)
    seeds = range(options.seeds)
    trials = [Trial(kind, recipe, seed) for seed in seeds for kind, recipe in TEACHERS.items()]
    results = run_trials(trials, run, options.emoji, options.out, options.jobs)
    parts = [circumstances(*of_trials("cpa", seeds, options.jobs))]
    first = results[0]
    parts.append(
        f"{first['classes']} classes, {first['ambiguous_classes']} of them ambiguous: a name of one word "
        "that is a word of another class's name, too."
    )
    short = shortened(load(options.emoji)).classes
    alike = {count: sharing(short, count) for count in (0, *COUNTS)}
    parts.append(
        "By short names, classes that have exactly the prompts of another one: "
        + ", ".join(f"{classes} with {plural(count, 'context')}" for count, classes in alike.items())
        + "; those with 0 are the ambiguous ones."
    )
    parts.append(f"![Zero-shot top-1 over the number of contexts]({options.report.stem}.png)")
    for kind in TEACHERS:
        rows = score_table(results, kind)
        table(rows)
        parts += [f"Teacher trained on {kind}, zero-shot top-1, %:", markdown_table(rows)]
        parts += [
            "The same, less the score of bare names, seed by seed: points with intervals of 95 % "
            "and p-values adjusted by Holm's method in each column:",
            markdown_table(gain_table(results, kind)),
        ]
    plot(results, options.report.with_suffix(".png"))
    write_figures(options.report, "Contexts in prompts", "\n\n".join(parts))
    keep_scores(results, options.report)


def run(trial: Trial, emoji: Path) -> Result:
    """Train a teacher; score it, and a student distilled from it, with each kind of anchors."""
    data = load(emoji)
    if trial.arm == SHORT:
        data = shortened(data)
    pairs = data.train if trial.arm == NAMES else with_contexts(data)
    clip, _ = train(trial.recipe, pairs, trial.seed)
    teacher = Teacher(clip)
    images = encoded(teacher, data.test, clip.image_size)
    labels = torch.tensor(data.test.labels)
    unclear = torch.isin(labels, torch.tensor(data.ambiguous))
    words = caption_words(data)
    scores: dict[str, float] = {}
    bare: Anchors | None = None
    for source, count in SETTINGS[trial.arm]:
        prompts = prompts_of(data.classes, source, count, words)
        anchors = encode_anchors(prompts, teacher.encode_text, "mean", cache_dir=None, encoder_fingerprint="")
        bare = bare or anchors
        student = distilled(
            clip,
            anchors,
            data.train,
            student=STUDENT,
            csm=CSM,
            optim=STUDENT_OPTIM,
            batch_size=STUDENT_BATCH,
            seed=trial.seed,
        )
        own = encoded(student, data.test, clip.image_size)
        name = f"{source}, {count}"
        for who, embeddings in (("teacher", images), ("student", own)):
            scores[f"{name}/{who}_all"] = top1(embeddings, labels, anchors, len(data.classes))
            scores[f"{name}/{who}_ambiguous"] = top1(
                embeddings[unclear], labels[unclear], anchors, len(data.classes)
            )
        scores[f"{name}/student_bare"] = top1(own, labels, bare, len(data.classes))
    return {
        "test": scores,
        "classes": len(data.classes),
        "ambiguous_classes": len(data.ambiguous),
        "zeroshot_top1": scores["bare names, 0/teacher_all"],
    }


def load(folder: Path) -> Emoji:
    """Load the images, and the classes with their place in the taxonomy and their tags."""
    train_pairs, test_pairs, names = load_emoji(folder)
    rows = pd.read_parquet(folder / "pairs.parquet").drop_duplicates("hexcode").sort_values("hexcode")
    classes = [
        ClassEntry(
            id=row.hexcode,
            name=row.label,
            parents=(row.subgroup.replace("-", " "), row.group.replace("-", " ")),
            contexts=tuple(str(tag) for tag in row.tags if str(tag).casefold() != row.label.casefold()),
        )
        for row in rows.itertuples()
    ]
    assert [entry.name for entry in classes] == names
    return Emoji(train_pairs, test_pairs, classes, ambiguous(names))


def ambiguous(names: Sequence[str]) -> list[int]:
    """Return the indices of names of one word that another name contains too."""
    words = [set(words_of(name)) for name in names]
    users: dict[str, int] = {}
    for of_name in words:
        for word in of_name:
            users[word] = users.get(word, 0) + 1
    return [i for i, name in enumerate(names) if len(name.split()) == 1 and users.get(name.casefold(), 0) > 1]


def shortened(data: Emoji) -> Emoji:
    """Reduce each name to its last word; the ambiguous classes are those that share it with another."""
    classes = [
        replace(entry, name=words_of(entry.name)[-1]) for entry in data.classes if words_of(entry.name)
    ]
    assert len(classes) == len(data.classes)
    counts = Counter(entry.name for entry in classes)
    return replace(
        data, classes=classes, ambiguous=[i for i, entry in enumerate(classes) if counts[entry.name] > 1]
    )


def sharing(classes: list[ClassEntry], count: int) -> int:
    """Count the classes whose prompts, with `count` contexts of the taxonomy, equal another class's."""
    prompts = [tuple(of_class) for of_class in prompts_of(classes, "taxonomy" if count else "", count, {})]
    counts = Counter(prompts)
    return sum(counts[of_class] > 1 for of_class in prompts)


def with_contexts(data: Emoji) -> Pairs:
    """Return the training pairs with further captions to draw from: the class's name alone, and with each
    of its contexts."""
    texts = []
    for label, caption in zip(data.train.labels, data.train.captions, strict=True):
        entry = data.classes[label]
        contexts = (*(f"a type of {parent}" for parent in entry.parents), *entry.contexts)
        prompts = dict.fromkeys((entry.name, *(f"{entry.name}, {context}" for context in contexts)))
        texts.append(tuple(prompt for prompt in prompts if prompt != caption))
    return replace(data.train, more_texts=texts)


def caption_words(data: Emoji) -> dict[str, tuple[str, ...]]:
    """Return the words beside each name in captions; a caption is the name and the tags of an image."""
    samples = [
        (entry.name, *entry.contexts) for entry in (data.classes[label] for label in data.train.labels)
    ]
    names = [entry.name for entry in data.classes]
    return ranked_words(count_samples(samples, names), names, max(COUNTS))


def prompts_of(
    classes: list[ClassEntry], source: str, count: int, words: dict[str, tuple[str, ...]]
) -> list[list[str]]:
    """Return the prompts of each class."""
    config = PromptConfig(templates=("name",), context_source=SOURCES.get(source, "none"), num_contexts=count)
    return class_prompts(classes, config, {"captions": lambda entry: words[entry.name]})


def encoded(model: Teacher, pairs: Pairs, size: int) -> Tensor:
    """Encode all images as unit embeddings [N, D]."""
    return torch.cat([model.encode_image(batch) for batch in load_images(pairs, size).split(256)])


def top1(embeddings: Tensor, labels: Tensor, anchors: Anchors, num_classes: int) -> float:
    """Return zero-shot top-1 accuracy over all classes, 0..1."""
    scores = class_scores(embeddings, anchors, num_classes, temperature=TEMPERATURE)
    return topk_accuracy(scores, labels, ks=(1,))[1]


def score_table(results: list[Result], kind: str) -> list[list[str]]:
    """Build a row for each kind of anchors."""
    rows = [["anchors", "contexts", *FIGURES.values()]]
    for source, count in SETTINGS[kind]:
        name = f"{source}, {count}"
        cells = [mean_on_test(results, kind, f"{name}/{figure}") for figure in FIGURES]
        rows.append([source, str(count), *cells])
    return rows


def gain_table(results: list[Result], kind: str) -> list[list[str]]:
    """Build a row for each kind of anchors: what contexts add, from the differences within each seed."""
    settings = [f"{source}, {count}" for source, count in SETTINGS[kind][1:]]
    columns = [gains(results, kind, settings, figure) for figure in FIGURES]
    rows = [["anchors", "contexts", *FIGURES.values()]]
    for (source, count), *cells in zip(SETTINGS[kind][1:], *columns, strict=True):
        rows.append([source, str(count), *cells])
    return rows


def gains(results: list[Result], kind: str, settings: list[str], figure: str) -> list[str]:
    """Return what each kind of anchors adds to a figure of bare names."""
    bare = on_test(results, kind, f"bare names, 0/{figure}")
    return as_texts([difference(on_test(results, kind, f"{name}/{figure}"), bare) for name in settings])


def plot(results: list[Result], out: Path) -> None:
    """Plot scores over the number of contexts: one row per teacher, one panel per figure.

    Error bars are one standard deviation.
    """
    figures = [figure for figure in FIGURES if figure != "student_bare"]
    with styled():
        figure = Figure(figsize=(12, 8.4), layout="constrained")
        grid = figure.subplots(len(TEACHERS), len(figures), sharex=True)
        for row, kind in zip(grid, TEACHERS, strict=True):
            for axes, name in zip(row, figures, strict=True):
                bare = on_test(results, kind, f"bare names, 0/{name}")
                axes.axhline(100 * np.mean(bare), color=MUTED, linestyle=":", label="bare names")
                for source in dict(SETTINGS[kind][1:]):
                    colour = COLOURS[source]
                    points = [on_test(results, kind, f"{source}, {count}/{name}") for count in COUNTS]
                    means, spreads = (
                        [100 * np.mean(p) for p in points],
                        [100 * np.std(p, ddof=1) for p in points],
                    )
                    axes.errorbar(
                        COUNTS, means, spreads, color=colour, marker="o", ms=4, capsize=3, label=source
                    )
                axes.set_xticks(COUNTS)
                axes.set_ylim(bottom=0)
            row[0].set_ylabel(f"taught on {kind}\n\nzero-shot top-1, %")
        for axes, name in zip(grid[0], figures, strict=True):
            axes.set_title(FIGURES[name])
        for axes in grid[-1]:
            axes.set_xlabel("contexts")
        grid[0][0].legend(frameon=False)
        save_figure(figure, out)


if __name__ == "__main__":
    main()
