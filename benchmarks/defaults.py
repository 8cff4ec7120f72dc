"""Defaults: how many steps, how large a batch and which learning rate a run without options needs.

python benchmarks/defaults.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, split) and its images; the embedded corpus of symbols is
drawn into --out. In both, the images in styles that training does not see are divided into two halves by a
hash of their names. Settings are chosen by their scores on one half. The other half scores the defaults that
`beamclip.training.recipe` derives from the number of images, with five seeds, beside the former fixed
defaults. Trials with a result in --out are not run again.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from support.distilling import distilled
from support.emoji_pairs import load_images
from support.options import of_trials, read_options
from support.pretraining import Recipe, train
from support.reports import circumstances, markdown_table, plus_minus, write_figures
from support.study_data import HALVES, IMAGES, StudyData, load_data
from support.trials import Result, Trial, results_of, run_trials

from beamclip.commands.console import table
from beamclip.data.config import StreamConfig
from beamclip.evaluation.zeroshot import topk_accuracy
from beamclip.losses.config import CsmConfig
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import encode_anchors
from beamclip.training.config import OptimConfig
from beamclip.training.recipe import DISTILLATION, PRETRAINING, complete

TEACHER, STUDENT = "nano-resnet10t", "test_resnet"
BEFORE = {"distill": (256, 10, 1e-3), "pretrain": (256, 20, 1e-3)}
"""Batch size, epochs and learning rate of the former fixed defaults."""
TRIED = {
    "distill": [(64, 10, 2e-3), (64, 20, 1e-3), (128, 20, 2e-3)],
    "pretrain": [(64, 20, 1e-3)],
}


def main() -> None:
    """Run what is missing, and write the report."""
    options = read_options("defaults", __doc__, seeds=5)
    if options.seeds not in T_95:
        sys.exit(f"--seeds {options.seeds}: give {min(T_95)} to {max(T_95)}, for the interval.")
    seeds = range(options.seeds)
    run = partial(score_trial, out=options.out)
    teachers = [trial_of(data, "pretrain", chosen(data, "pretrain"), 0) for data in IMAGES]
    run_trials(teachers, run, options.emoji, options.out, options.jobs)
    tried = [
        trial_of(data, task, setting, 0)
        for data in IMAGES
        for task in TRIED
        for setting in dict.fromkeys((chosen(data, task), BEFORE[task], *TRIED[task]))
    ]
    final = [
        trial_of(data, "distill", setting, seed)
        for data in IMAGES
        for setting in (chosen(data, "distill"), BEFORE["distill"])
        for seed in seeds
    ]
    trials = list({trial.file_name: trial for trial in (*final, *tried)}.values())
    results = run_trials(trials, run, options.emoji, options.out, options.jobs)
    parts = [circumstances(*of_trials("defaults", seeds, options.jobs))]
    for task in TRIED:
        rows = tried_table(results, task)
        table(rows)
        parts += [f"`{task}`, seed 0, zero-shot top-1 on validation data, %:", markdown_table(rows)]
    rows = final_table(results, len(seeds))
    table(rows)
    parts += [
        f"`distill`, {len(seeds)} seeds, the student's share of its teacher's top-1 on test data, %:",
        markdown_table(rows),
    ]
    write_figures(options.report, "Defaults", "\n\n".join(parts))


T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a two-sided interval of 95 %, by the number of seeds."""


def chosen(data: str, task: str) -> tuple[int, float, float]:
    """Return batch size, epochs and learning rate of a run without options."""
    recipe = DISTILLATION if task == "distill" else PRETRAINING
    stream, optim = complete(recipe, IMAGES[data], StreamConfig(), OptimConfig())
    assert stream.batch_size is not None
    assert optim.epochs is not None
    assert optim.lr is not None
    return stream.batch_size, optim.epochs, optim.lr


def trial_of(data: str, task: str, setting: tuple[int, float, float], seed: int) -> Trial:
    """Describe a training; its arm names the data, the task and the setting."""
    batch, epochs, lr = setting
    model = STUDENT if task == "distill" else TEACHER
    recipe = Recipe(model, batch_size=batch, optim=OptimConfig(epochs=float(epochs), lr=lr))
    return Trial(f"{data} {task} {batch} x {epochs:g}, {lr:g}", recipe, seed)


def score_trial(trial: Trial, emoji: Path, out: Path) -> Result:
    """Train and score on both halves; a student is taught by the teacher of its data, which is scored too."""
    name, task = trial.arm.split()[:2]
    data = load_data(name, emoji, out)
    weights = out / f"{name}-teacher.pt"
    if task == "pretrain":
        clip, _ = train(trial.recipe, data.train, trial.seed)
        scores = {half: top1(Teacher(clip), clip, data, half) for half in HALVES}
        if trial == trial_of(name, "pretrain", chosen(name, "pretrain"), 0):
            torch.save(clip.model.state_dict(), weights)
        return {**scores, "zeroshot_top1": scores["validation"]}
    clip = new_clip(TEACHER, 0)
    clip.model.load_state_dict(torch.load(weights, weights_only=True))
    clip.model.eval()
    teacher = Teacher(clip)
    anchors = encode_anchors(
        [[name] for name in data.names], teacher.encode_text, "mean", cache_dir=None, encoder_fingerprint=""
    )
    student = distilled(
        clip,
        anchors,
        data.train,
        student=STUDENT,
        csm=CsmConfig(),
        optim=trial.recipe.optim,
        batch_size=trial.recipe.batch_size,
        seed=trial.seed,
    )
    scores = {half: top1(student, clip, data, half) for half in HALVES}
    taught = {f"teacher_{half}": top1(teacher, clip, data, half) for half in HALVES}
    return {**scores, **taught, "zeroshot_top1": scores["validation"]}


def top1(model: Teacher, texts: LoadedClip, data: StudyData, half: str) -> float:
    """Return zero-shot accuracy with bare names as prompts."""
    pairs = data.halves[half]
    images = torch.cat([model.encode_image(b) for b in load_images(pairs, texts.image_size).split(256)])
    anchors = Teacher(texts).encode_text(data.names)
    return topk_accuracy(images @ anchors.T, torch.tensor(pairs.labels), ks=(1,))[1]


def tried_table(results: list[Result], task: str) -> list[list[str]]:
    """Build a row for each setting that was tried with the first seed."""
    rows = [
        ["data", "batch x epochs, lr", "top-1", "of the teacher's" if task == "distill" else "of the best"]
    ]
    found = [r for r in results if r["trial"]["seed"] == 0 and r["trial"]["arm"].split()[1] == task]
    best = {
        data: max(r["validation"] for r in found if r["trial"]["arm"].startswith(data)) for data in IMAGES
    }
    for result in sorted(found, key=lambda r: r["trial"]["arm"]):
        data, _, setting = result["trial"]["arm"].split(maxsplit=2)
        whole = result["teacher_validation"] if task == "distill" else best[data]
        mark = (
            " (default)" if result["trial"]["arm"] == trial_of(data, task, chosen(data, task), 0).arm else ""
        )
        mark = " (before)" if result["trial"]["arm"] == trial_of(data, task, BEFORE[task], 0).arm else mark
        rows.append(
            [
                data,
                setting + mark,
                f"{100 * result['validation']:.1f}",
                f"{100 * result['validation'] / whole:.0f}",
            ]
        )
    return rows


def final_table(results: list[Result], seeds: int) -> list[list[str]]:
    """Compare the default with the former one: a row per data set, over all seeds and seed by seed."""
    rows = [["data", "default", "before", "difference, 95 % interval"]]
    for data in IMAGES:
        kept = []
        for setting in (chosen(data, "distill"), BEFORE["distill"]):
            own = results_of(results, trial_of(data, "distill", setting, 0).arm)
            own.sort(key=lambda result: result["trial"]["seed"])
            kept.append(np.array([result["test"] / result["teacher_test"] for result in own]))
        difference = kept[0] - kept[1]
        half = T_95[seeds] * difference.std(ddof=1) / np.sqrt(seeds)
        cells = [plus_minus(shares.mean(), shares.std(ddof=1)) for shares in kept]
        rows.append([data, *cells, plus_minus(difference.mean(), half)])
    return rows


if __name__ == "__main__":
    main()
