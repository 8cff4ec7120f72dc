"""Noisy captions: what progressive self-distillation gains when a part of the captions is wrong.

python benchmarks/psd_noise.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, split) and its images. Of the training captions, 0 to 40 %
are shuffled among their images. InfoNCE, self-distillation, and what might do the same without it (label
smoothing, leaving rows out, merging equal captions) train on each set from the same weights. Settings of each
kind are chosen on one half of the clean pairs of held-out drawings, and scored on the other. Trials with a
result in --out are not run again.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from support.emoji_pairs import shuffle_captions
from support.options import of_trials, read_options
from support.paired import Pair, compared, difference, mean_on_test, on_test
from support.pretraining import Recipe, score, train
from support.reports import circumstances, markdown_table, write_figures
from support.study_data import load_data
from support.timing import ROUNDS, time_steps
from support.trials import Result, Trial, keep_scores, results_of, run_trials

from beamclip.commands.console import percent, table
from beamclip.losses.config import PsdConfig
from beamclip.plots.style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, save_figure, styled
from beamclip.training.config import OptimConfig

NOISE = (0.0, 0.2, 0.4)
CHOSEN_AT = 0.4
"""The share of shuffled captions at which settings are chosen."""
SCREENED_WITH = 100
"""Seed of the trainings by which settings are chosen; the others have small ones."""
BASE = Recipe(
    model="nano-resnet10t",
    model_changes={
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_resnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        }
    },
    batch_size=128,
    optim=OptimConfig(epochs=16, lr=1e-3),
)
UNIFORM = 1e-6
"""A sharpness at which the softmax of any similarities is even."""


def smoothed(share: float) -> PsdConfig:
    """Return settings that are label smoothing: every row's target is even but for the pair's own weight."""
    return PsdConfig(
        psd_target="self",
        psd_sharpness=UNIFORM,
        psd_identity=1.0 - share,
        psd_schedule="constant",
        psd_warmup=0.0,
        psd_end=1.0,
        psd_select="random",
    )


def dropped(end: float) -> PsdConfig:
    """Return settings by which the chosen rows get no gradient: their targets are what the model says."""
    return PsdConfig(psd_target="self", psd_identity=0.0, psd_end=end)


def ema(start: float, end: float) -> PsdConfig:
    """Return settings of a moving average as teacher."""
    return PsdConfig(
        psd_target="ema",
        psd_ema_decay=0.98,
        psd_identity=0.0,
        psd_schedule="linear",
        psd_start=start,
        psd_end=end,
    )


REFERENCE, MERGED, LEFT_OUT, BY_DEFAULT = (
    "InfoNCE",
    "duplicates merged",
    "rows left out",
    "PSD by default",
)
CANDIDATES = {
    "label smoothing": {f"{share:g}": smoothed(share) for share in (0.1, 0.2, 0.4)},
    LEFT_OUT: {f"to {end:.0%}": dropped(end) for end in (0.5, 0.8)},
    "PSD random": {f"to {end:.0%}": PsdConfig(psd_select="random", psd_end=end) for end in (0.5, 0.8)},
    "PSD swap": {
        "to 50 %": PsdConfig(psd_end=0.5),
        "to 80 %": PsdConfig(psd_end=0.8),
        "to 80 %, sharpness 4": PsdConfig(psd_end=0.8, psd_sharpness=4.0),
        "to 80 %, no identity": PsdConfig(psd_end=0.8, psd_identity=0.0),
        "to 80 %, Sinkhorn": PsdConfig(psd_end=0.8, psd_target="sinkhorn"),
    },
    "PSD ema": {
        "40 to 60 %": ema(0.4, 0.6),
        "to 60 %": ema(0.0, 0.6),
        "to 80 %, cosine, identity 0.1": PsdConfig(psd_end=0.8, psd_target="ema", psd_ema_decay=0.98),
    },
}
"""Settings of each kind, of which the best on validation data is compared. Rows are those of low confidence
where no name says otherwise."""
COLOURS = dict(
    zip(
        (REFERENCE, MERGED, *CANDIDATES, BY_DEFAULT),
        (INK, FAINT, MUTED, PURPLE, "#56B4E9", BLUE, GREEN, ORANGE),
        strict=True,
    )
)

TIMED = {
    REFERENCE: BASE,
    **{f"PSD {target}": replace(BASE, objective="psd", psd=PsdConfig(
        psd_target=target, psd_schedule="constant", psd_warmup=0.0))
       for target in ("swap", "self", "sinkhorn", "ema")},
    "SigLIP": replace(BASE, objective="siglip"),
}  # fmt: skip
"""Recipes that are timed; PSD self-distils half of each batch from the first step on."""


def main() -> None:
    """Run what is missing, and write table, plot and report."""
    options = read_options("psd_noise", __doc__, seeds=5)
    seeds = range(options.seeds)

    def results(trials: list[Trial]) -> list[Result]:
        return run_trials(trials, run, options.emoji, options.out, options.jobs)

    tried = {
        tried_name(kind, name): psd for kind, settings in CANDIDATES.items() for name, psd in settings.items()
    }
    screened = results(
        [Trial(name, self_distilled(psd), SCREENED_WITH, CHOSEN_AT) for name, psd in tried.items()]
    )
    chosen = {kind: best_setting(screened, kind) for kind in CANDIDATES}
    arms = arms_of(chosen)
    # The noise that settings were chosen at runs first.
    shares = sorted(NOISE, key=lambda noise: noise != CHOSEN_AT)
    found = results(
        [
            Trial(arm, recipe, seed, noise)
            for noise in shares
            for seed in seeds
            for arm, recipe in arms.items()
        ]
    )
    times = time_steps(TIMED, REFERENCE, options.out / "step_times.json")
    table(scores := score_table(found, list(arms)))
    plot(found, list(arms), options.report.with_suffix(".png"))
    parts = [
        circumstances(*of_trials("psd_noise", seeds, options.jobs)),
        f"Settings, {CHOSEN_AT:.0%} of captions shuffled, zero-shot top-1 on validation data, %, one "
        "training each; the best of each kind is compared below:",
        markdown_table(setting_table(screened, chosen)),
        f"![Zero-shot top-1 against the share of shuffled captions]({options.report.stem}.png)",
        "Test data, %:",
        markdown_table(scores),
        f"Zero-shot top-1 on test data against {REFERENCE} and against leaving the same rows out, seed by "
        "seed, percentage points with intervals of 95 % and p-values adjusted by Holm's method for all arms "
        "and shares of noise:",
        markdown_table(difference_table(found, list(arms))),
        f"Seconds of a training step relative to {REFERENCE}'s, batch of {BASE.batch_size}, one thread, "
        f"steps of all taken in turn in one process (median and quartiles of {ROUNDS} rounds):",
        markdown_table(
            [["objective", "relative time"], *([name, step.text] for name, step in times.items())]
        ),
    ]
    write_figures(options.report, "Noisy captions and self-distillation", "\n\n".join(parts))
    keep_scores([*screened, *found], options.report)


def run(trial: Trial, emoji: Path) -> Result:
    """Train on noisy captions, score on clean ones: on both halves of the held-out drawings."""
    data = load_data("emoji", emoji, emoji)
    clip, speed = train(trial.recipe, shuffle_captions(data.train, trial.noise, trial.seed), trial.seed)
    halves = {half: score(clip, pairs, data.names) for half, pairs in data.halves.items()}
    return {**halves, **speed, "zeroshot_top1": halves["validation"]["zeroshot_top1"]}


def self_distilled(psd: PsdConfig) -> Recipe:
    """Return the recipe of the objective psd under some settings."""
    return replace(BASE, objective="psd", psd=psd)


def tried_name(kind: str, setting: str) -> str:
    """Return the name of the arm that tries a setting."""
    return f"{kind}, {setting}"


def best_setting(screened: list[Result], kind: str) -> str:
    """Return the setting of a kind with the highest zero-shot score on validation data."""
    scores = {name: validated(screened, tried_name(kind, name)) for name in CANDIDATES[kind]}
    return max(scores, key=lambda name: scores[name])


def validated(screened: list[Result], arm: str) -> float:
    """Return the zero-shot score of a tried setting on validation data."""
    [result] = results_of(screened, arm, CHOSEN_AT)
    top1: float = result["zeroshot_top1"]
    return top1


def arms_of(chosen: dict[str, str]) -> dict[str, Recipe]:
    """Return what is compared: objectives, the chosen setting of each kind, and the default of `pretrain`."""
    arms = {
        REFERENCE: BASE,
        MERGED: self_distilled(PsdConfig(psd_end=0.0)),
        **{kind: self_distilled(CANDIDATES[kind][name]) for kind, name in chosen.items()},
    }
    if self_distilled(PsdConfig()) not in arms.values():
        arms[BY_DEFAULT] = self_distilled(PsdConfig())
    return arms


def setting_table(screened: list[Result], chosen: dict[str, str]) -> list[list[str]]:
    """Build a row for each setting that was tried."""
    rows = [["kind", "setting", "top-1", "targets that still name the pair"]]
    for kind, settings in CANDIDATES.items():
        for name in settings:
            arm = tried_name(kind, name)
            [result] = results_of(screened, arm, CHOSEN_AT)
            mark = " (chosen)" if chosen[kind] == name else ""
            agreement = percent(result["last_epoch"]["psd/agreement"])
            rows.append([kind, name + mark, f"{100 * validated(screened, arm):.1f}", agreement])
    return rows


def score_table(results: list[Result], arms: list[str]) -> list[list[str]]:
    """Build a row for each share of noise and arm."""
    figures = {
        "zeroshot_top1": "zero-shot top-1",
        "zeroshot_top5": "top-5",
        "retrieval_i2t_r1": "R@1 image to text",
        "retrieval_t2i_r1": "R@1 text to image",
    }
    rows = [["shuffled", "arm", *figures.values()]]
    for noise in NOISE:
        for arm in arms:
            cells = [mean_on_test(results, arm, figure, noise) for figure in figures]
            rows.append([f"{noise:.0%}", arm, *cells])
    return rows


def difference_table(results: list[Result], arms: list[str]) -> list[list[str]]:
    """Build a row for each arm and share of noise: its differences to InfoNCE and to the rows left out."""
    against = (REFERENCE, LEFT_OUT)
    cells: dict[Pair, str] = {}
    for other in against:
        pairs = [Pair(arm, other, noise) for noise in NOISE for arm in arms if arm != other]
        cells |= compared(results, pairs, "zeroshot_top1")
    rows = [["shuffled", "arm", *(f"against {other}" for other in against)]]
    for noise in NOISE:
        for arm in arms:
            rows.append([f"{noise:.0%}", arm, *(cells.get(Pair(arm, other, noise), "") for other in against)])
    return rows


def plot(results: list[Result], arms: list[str], out: Path) -> None:
    """Plot zero-shot scores, and their differences to InfoNCE with intervals, over the share of noise."""
    shares = [100 * noise for noise in NOISE]
    with styled():
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, arm in enumerate(arms):
            own = [on_test(results, arm, "zeroshot_top1", noise) for noise in NOISE]
            colour = COLOURS[arm]
            left.plot(shares, [100 * np.mean(one) for one in own], color=colour, marker="o", ms=4, label=arm)
            if arm == REFERENCE:
                continue
            found = [
                difference(one, on_test(results, REFERENCE, "zeroshot_top1", noise))
                for one, noise in zip(own, NOISE, strict=True)
            ]
            shifted = [share + 1.2 * (place - len(arms) / 2) for share in shares]
            means, halves = [100 * one.mean for one in found], [100 * one.half for one in found]
            right.errorbar(shifted, means, halves, color=colour, marker="o", ms=4, capsize=2, ls="none")
        left.set(title="zero-shot top-1, test drawings", ylabel="%", ylim=(0, None))
        right.set(title=f"difference to {REFERENCE}, interval of 95 %", ylabel="percentage points")
        right.axhline(0, color=MUTED, lw=1)
        for axes in (left, right):
            axes.set(xlabel="captions shuffled, %", xticks=shares)
        left.legend(frameon=False)
        save_figure(figure, out)


if __name__ == "__main__":
    main()
