"""Losses: which of them makes the best student, of how many anchors, and with which head?

python benchmarks/losses.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, split) and its images; the embedded corpus of symbols is
drawn into --out. In both, the images in styles that training does not see are divided into two halves by a
hash of their names. Temperatures and weights are chosen by one training each on one half, the best of the
losses by five, all by zero-shot top-1; differences are reported on the other half.
Trainings with a result in --out are not run again; each has as many steps as a run without options, and sees
the same views of the images.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from support.distilling import Losses, distilled_from_pool
from support.emoji_pairs import load_images, shuffled_rows
from support.options import StudyOptions, of_trials, read_options
from support.paired import Pair
from support.pretraining import Recipe, train
from support.reports import circumstances, markdown_table, write_figures
from support.score_tables import plot_differences, score_table
from support.study_data import HALVES, IMAGES, StudyData, load_data
from support.trials import Result, Trial, keep_scores, results_of, run_trials
from support.view_pool import load_pool, make_pool, save_pool
from torch import Tensor

from beamclip.data.config import StreamConfig
from beamclip.evaluation.knn import knn_scores
from beamclip.evaluation.probe import fit_probe
from beamclip.evaluation.zeroshot import topk_accuracy
from beamclip.losses.config import BatchTermsConfig, CsmConfig, FeatureConfig
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.config import Head, StudentConfig
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import OptimConfig
from beamclip.training.process import prepare_process
from beamclip.training.recipe import DISTILLATION, PRETRAINING, complete

TEACHER, STUDENT = "tiny-resnet18", "test_resnet"
ALL = 0
"""Number of anchors: all class names."""
CAPTIONS = -1
"""Number of anchors: all different captions."""


@dataclass(frozen=True)
class Arm:
    """What distinguishes a training from others, without its seed."""

    losses: Losses
    data: str = "emoji"
    anchors: int = ALL
    head: Head = "linear"
    shuffled: float = 0.0
    """Share of the captions that are other images', 0..1."""


SCREENED_WITH = 100
"""Seed of the trainings by which temperatures and weights are chosen; the others have small ones."""
TEMPERATURES = [
    (teacher, student) for teacher in (0.005, 0.01, 0.02, 0.04, 0.07) for student in (0.02, 0.05, 0.1, 0.2)
]
WEIGHTS = {"FD": (1.0, 10.0, 100.0), "ICL": (0.1, 1.0), "CRD": (0.3, 3.0), "affinity": (0.1, 1.0)}
"""Weights tried for each term beside CSM."""
SHUFFLED = 0.4
"""Share of the captions that are shuffled to see what a loss that reads them loses."""
ANCHORS = {"100": 100, "1,000": 1000, "all names": ALL}
DEFAULT, TUNED, ALONE = "CSM", "CSM tuned", "FD"
"""The loss of a run without options, with which the others are compared; the same at the temperatures that
were chosen; and the strongest single term of CLIP-KD."""


def of_weights(csm: CsmConfig | None, **weights: float) -> Losses:
    """Build losses from the weights of further terms, by their names in WEIGHTS."""
    return Losses(
        csm or CsmConfig(csm_weight=0.0),
        FeatureConfig(feature_weight=weights.get("FD", 0.0)),
        BatchTermsConfig(
            icl_weight=weights.get("ICL", 0.0),
            crd_weight=weights.get("CRD", 0.0),
            affinity_weight=weights.get("affinity", 0.0),
        ),
    )


def main() -> None:
    """Run what is missing, and write the report."""
    options = read_options("losses", __doc__, seeds=5)
    for data in IMAGES:
        prepare_data(data, options.emoji, options.out)
    run = partial(score_trial, out=options.out)

    def results(arms: dict[str, Arm], seeds: range) -> list[Result]:
        trials = [Trial(name, arm, seed) for seed in seeds for name, arm in arms.items()]
        return run_trials(trials, run, options.emoji, options.out / "trials", options.jobs)

    screened_by = range(SCREENED_WITH, SCREENED_WITH + 1)
    tried = temperature_arms()
    found = results(tried, screened_by)
    csm = tried[best_of(found, list(tried))].losses.csm
    weighted = weight_arms(csm)
    found += results(weighted, screened_by)
    seeds = range(options.seeds)
    arms = loss_arms(csm, {term: best_weight(found, term) for term in WEIGHTS})
    found += results(arms, seeds)
    winner = best_of([r for r in found if r["trial"]["seed"] in seeds], list(arms))
    further = further_arms(arms, winner)
    found += results(further, seeds)
    parts = [
        circumstances(*of_trials("losses", seeds, options.jobs)),
        *report(found, arms, further, winner, options),
    ]
    write_figures(options.report, "Losses, anchors and heads", "\n\n".join(parts))
    keep_scores(found, options.report)


def temperature_arms() -> dict[str, Arm]:
    """Return CSM alone at each pair of temperatures."""
    return {
        f"CSM at {teacher:g} and {student:g}": Arm(
            Losses(CsmConfig(tau_teacher=teacher, tau_student=student))
        )
        for teacher, student in TEMPERATURES
    }


def weight_arms(csm: CsmConfig) -> dict[str, Arm]:
    """Return CSM at its chosen temperatures with each further term, at each of its weights."""
    return {
        f"CSM + {weight:g} {term}": Arm(of_weights(csm, **{term: weight}))
        for term, weights in WEIGHTS.items()
        for weight in weights
    }


def best_weight(found: list[Result], term: str) -> float:
    """Return the weight of a term that scored best beside CSM."""
    names = {f"CSM + {weight:g} {term}": weight for weight in WEIGHTS[term]}
    return names[best_of(found, list(names))]


def loss_arms(csm: CsmConfig, weights: dict[str, float]) -> dict[str, Arm]:
    """Return the losses that are compared at all class names and a linear head.

    Args:
        csm: with the temperatures that were chosen.
        weights: that were chosen for each term beside CSM.
    """
    alone = {"FD": 1.0, "ICL": 1.0, "CRD": 1.0, "affinity": 1.0}
    # CLIP-KD (arXiv 2307.12732): 2000 x the mean over D components of squared differences.
    clip_kd = Losses(
        CsmConfig(csm_weight=0.0),
        FeatureConfig(feature_weight=2000.0, feature_kind="mse"),
        BatchTermsConfig(icl_weight=1.0, crd_weight=1.0),
    )
    losses = {
        DEFAULT: Losses(),
        TUNED: Losses(csm),
        **{term: of_weights(None, **{term: weight}) for term, weight in alone.items()},
        "FD + ICL + CRD (CLIP-KD)": clip_kd,
        **{f"{TUNED} + {term}": of_weights(csm, **{term: weights[term]}) for term in WEIGHTS},
        f"{TUNED} + FD + ICL": of_weights(csm, FD=weights["FD"], ICL=weights["ICL"]),
    }
    return {name: Arm(own) for name, own in losses.items()}


def further_arms(arms: dict[str, Arm], winner: str) -> dict[str, Arm]:
    """Return the best loss, and the best without captions, under other conditions."""
    names = list(dict.fromkeys((TUNED, winner)))
    further = {}
    for name in names:
        for label, anchors in ANCHORS.items():
            if anchors and arms[name].losses.csm.csm_weight:
                further[f"{name}, {label} anchors"] = replace(arms[name], anchors=anchors)
        further[f"{name}, mlp"] = replace(arms[name], head="mlp")
    if arms[winner].losses.terms.read_captions:
        further[f"{winner}, {SHUFFLED:.0%} shuffled"] = replace(arms[winner], shuffled=SHUFFLED)
    for name in dict.fromkeys((DEFAULT, *names, ALONE)):
        further[f"{name}, glyphs"] = replace(arms[name], data="glyphs")
        if name in names and arms[name].losses.csm.csm_weight:
            further[f"{name}, captions, glyphs"] = replace(arms[name], data="glyphs", anchors=CAPTIONS)
    return further


def prepare_data(name: str, emoji: Path, out: Path) -> None:
    """Train the teacher of a data set as a run without options does, and make its views, unless done."""
    pool_file = out / f"{name}-views.pt"
    if pool_file.exists():
        return
    prepare_process(threads=1, seed=0)
    began = time.perf_counter()
    data = load_data(name, emoji, out)
    stream, optim = complete(PRETRAINING, IMAGES[name], StreamConfig(), OptimConfig())
    clip, _ = train(Recipe(TEACHER, batch_size=stream.batch_size or 0, optim=optim), data.train, seed=0)
    torch.save(clip.model.state_dict(), teacher_file(name, out))
    _, distilling = complete(DISTILLATION, IMAGES[name], StreamConfig(), OptimConfig())
    scores = scores_of(Teacher(clip), clip.image_size, Teacher(clip).encode_text(data.names), data)
    (out / f"{name}-teacher.json").write_text(json.dumps(scores, indent=2))
    save_pool(make_pool(clip, data.train, views=int(distilling.epochs or 0) + 1, seed=0), pool_file)
    print(f"{name}: teacher and views in {time.perf_counter() - began:.0f} s", flush=True)


def teacher_file(name: str, out: Path) -> Path:
    """Return the file of the weights of a data set's teacher."""
    return out / f"{name}-teacher.pt"


def load_teacher(name: str, out: Path) -> LoadedClip:
    """Load the teacher of a data set."""
    clip = new_clip(TEACHER, 0)
    clip.model.load_state_dict(torch.load(teacher_file(name, out), weights_only=True))
    clip.model.eval()
    return clip


def score_trial(trial: Trial, emoji: Path, out: Path) -> Result:
    """Train a student and score it on both halves, beside its teacher."""
    arm: Arm = trial.recipe
    data, clip = load_data(arm.data, emoji, out), load_teacher(arm.data, out)
    teacher = Teacher(clip)
    stream, optim = complete(DISTILLATION, IMAGES[arm.data], StreamConfig(), OptimConfig())
    pool = load_pool(out / f"{arm.data}-views.pt")
    sources = shuffled_rows(len(pool.captions), arm.shuffled, trial.seed)
    began = time.process_time()
    student = distilled_from_pool(
        clip,
        anchors_of(arm, data, teacher),
        replace(pool, captions=pool.captions[sources]),
        student=StudentConfig(student=STUDENT, student_head=arm.head),
        losses=arm.losses,
        optim=optim,
        batch_size=stream.batch_size or 0,
        seed=trial.seed,
    )
    cpu_seconds = time.process_time() - began
    scores = scores_of(student, clip.image_size, teacher.encode_text(data.names), data)
    return {**scores, "cpu_seconds": cpu_seconds, "zeroshot_top1": scores["validation"]["zeroshot"]}


def anchors_of(arm: Arm, data: StudyData, teacher: Teacher) -> Anchors:
    """Embed the texts of an arm's anchors; a part of the names is the same for all seeds."""
    texts = data.names if arm.anchors != CAPTIONS else list(dict.fromkeys(data.train.captions))
    if arm.anchors > 0:
        chosen = np.random.default_rng(0).permutation(len(texts))[: arm.anchors]
        texts = [texts[i] for i in sorted(chosen)]
    return Anchors(teacher.encode_text(texts), torch.arange(len(texts)))


def scores_of(model: Teacher, size: int, names: Tensor, data: StudyData) -> dict[str, dict[str, float]]:
    """Score zero-shot by the embeddings of bare names, ten nearest neighbours and a linear probe, by half."""
    embedded = {half: _encode(model, load_images(data.halves[half], size)) for half in HALVES}
    bank = _encode(model, load_images(data.train, size))[1]
    known = torch.tensor(data.train.labels)
    probe = fit_probe(bank, known, inverse_regularisation=PROBE_C, max_iterations=100)
    scores = {}
    for half, (images, features) in embedded.items():
        labels = torch.tensor(data.halves[half].labels)
        near = knn_scores(bank, known, features, len(data.names), neighbours=10)
        scores[half] = {
            "zeroshot": topk_accuracy(images @ names.T, labels, ks=(1,))[1],
            "knn": topk_accuracy(near, labels, ks=(1,))[1],
            "probe": float((probe.ranks(features, labels) == 0).float().mean()),
        }
    return scores


PROBE_C = 0.1
"""One strength of the probe's penalty for all students, so that the search for it adds no noise."""


def _encode(model: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    batches = map(model.images.encode_with_features, images.split(256))
    embeddings, features = zip(*batches, strict=True)
    return torch.cat(embeddings), torch.cat(features)


def best_of(found: list[Result], names: list[str]) -> str:
    """Return the arm with the highest mean zero-shot score on validation data."""
    means = {name: np.mean([r["validation"]["zeroshot"] for r in results_of(found, name)]) for name in names}
    return max(means, key=lambda name: means[name])


SCORES = {"zeroshot": "zero-shot top-1, %", "knn": "kNN-10, %", "probe": "linear probe, %"}


def report(
    found: list[Result], arms: dict[str, Arm], further: dict[str, Arm], winner: str, options: StudyOptions
) -> list[str]:
    """Write the tables of the report, as text and markdown in turn, and its plot."""
    of_seeds = [r for r in found if r["trial"]["seed"] != SCREENED_WITH]
    emoji = [name for name in arms if name != DEFAULT]
    picture = options.report.with_suffix(".png")
    plot_differences(of_seeds, emoji, DEFAULT, SCORES, picture)

    def scored(*pairs: tuple[str, str]) -> str:
        return markdown_table(score_table(of_seeds, [Pair(*pair) for pair in pairs], SCORES))

    rivals = [name for name in (DEFAULT, TUNED, ALONE) if name != winner]
    others = [(name, name.rsplit(", ", 1)[0]) for name, arm in further.items() if arm.data == "emoji"]
    # CSM reads no captions, so that its scores are those at any share of wrong ones.
    others += [(name, rival) for name, arm in further.items() if arm.shuffled for rival in (TUNED, DEFAULT)]
    base = f"{DEFAULT}, glyphs"
    glyphs = [(name, base) for name, arm in further.items() if arm.data == "glyphs"]
    return [
        "CSM alone at each pair of temperatures, one training each, on validation data: zero-shot top-1, by "
        "which they are chosen, and in brackets the mean of zero-shot, kNN-10 and linear probe, %:",
        markdown_table(temperature_table(found)),
        "CSM at the best of these temperatures with one further term, the same:",
        markdown_table(weight_table(found)),
        "Losses on test data, emoji, all names as anchors, linear head. Below each score is the difference "
        f"to {DEFAULT}, seed by seed, with its interval of 95 % and its p-value, adjusted by Holm's method "
        "in each column:",
        f"![Differences of the losses to {DEFAULT}, with intervals]({picture.name})",
        scored((DEFAULT, DEFAULT), *((name, DEFAULT) for name in emoji)),
        f"The best by validation data, {winner}, against others:",
        scored(*((winner, name) for name in rivals)),
        "Anchors, heads and wrong captions on test data, emoji:",
        scored(*others),
        "Glyphs, test data:",
        scored(*glyphs),
        "Teachers, test data:",
        markdown_table(teacher_table(options.out)),
    ]


def teacher_table(folder: Path) -> list[list[str]]:
    """Build a row of scores for the teacher of each data set."""
    rows = [["teacher", *SCORES.values()]]
    for data in IMAGES:
        own = json.loads((folder / f"{data}-teacher.json").read_text())["test"]
        rows.append([data, *(f"{100 * own[score]:.1f}" for score in SCORES)])
    return rows


def temperature_table(found: list[Result]) -> list[list[str]]:
    """Build a row for each temperature of the teacher, a column for each of the student."""
    of_student = sorted({student for _, student in TEMPERATURES})
    rows = [["tau_teacher", *(f"tau_student {student:g}" for student in of_student)]]
    for teacher in sorted({teacher for teacher, _ in TEMPERATURES}):
        cells = [validated(found, f"CSM at {teacher:g} and {student:g}") for student in of_student]
        rows.append([f"{teacher:g}", *cells])
    return rows


def weight_table(found: list[Result]) -> list[list[str]]:
    """Build a row for each term and weight."""
    rows = [["term", "weight", "zero-shot (mean)"]]
    for term, weights in WEIGHTS.items():
        rows += [[term, f"{weight:g}", validated(found, f"CSM + {weight:g} {term}")] for weight in weights]
    return rows


def validated(found: list[Result], arm: str) -> str:
    """Return an arm's zero-shot score on validation data and the mean of its three scores, in per cent."""
    own = [[r["validation"][score] for score in SCORES] for r in results_of(found, arm)]
    return f"{100 * np.mean(own, axis=0)[0]:.1f} ({100 * np.mean(own):.1f})"


if __name__ == "__main__":
    main()
