"""Noisy captions: what progressive self-distillation gains when a part of the captions is wrong.

python benchmarks/psd_noise.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, split) and its images. Of the training captions, 0 to 60 %
are shuffled among their images; InfoNCE, self-distillation and SigLIP train on each set from the same
weights, and are scored on clean pairs of held-out drawings. Trials with a result in --out are not run again.
"""

import statistics
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from support.emoji_pairs import load_emoji, shuffle_captions
from support.options import of_trials, read_options
from support.pretraining import Recipe, score, train
from support.reports import circumstances, markdown_table, plus_minus, write_figures
from support.timing import ROUNDS, time_steps
from support.trials import Result, Trial, over_seeds, results_of, run_trials

from beamclip.commands.console import percent, table
from beamclip.losses.config import PsdConfig
from beamclip.plots.style import BLUE, GREEN, MUTED, ORANGE, save_figure, styled
from beamclip.training.config import OptimConfig

NOISE = (0.0, 0.2, 0.4, 0.6)
STUDIED = 0.4
"""The share of shuffled captions at which more settings of self-distillation are tried."""
BASE = Recipe(model="nano-resnet10t", batch_size=128, optim=OptimConfig(epochs=16, lr=1e-3))
SWAP = PsdConfig(psd_end=0.8)
EMA = PsdConfig(
    psd_target="ema",
    psd_ema_decay=0.98,
    psd_identity=0.0,
    psd_schedule="linear",
    psd_start=0.4,
    psd_end=0.6,
)
"""SWAP and EMA were chosen by trials with one seed at the studied share of shuffled captions."""

ARMS = {
    "InfoNCE": BASE,
    "PSD swap": replace(BASE, objective="psd", psd=SWAP),
    "PSD ema": replace(BASE, objective="psd", psd=EMA),
    "SigLIP": replace(BASE, objective="siglip"),
}
COLOURS = dict(zip(ARMS, (MUTED, BLUE, GREEN, ORANGE), strict=True))

TRIED = {
    "swap, random rows, to 50 %": PsdConfig(psd_select="random"),
    "swap, random rows": replace(SWAP, psd_select="random"),
    "swap, schedule and floor as ema's": replace(EMA, psd_target="swap"),
    "swap, no identity floor, sharpness 4": replace(SWAP, psd_identity=0.0, psd_sharpness=4.0),
    "sinkhorn": replace(SWAP, psd_target="sinkhorn"),
}
"""Other settings of self-distillation; all that a name does not say is as in SWAP."""

TIMED = {
    "InfoNCE": BASE,
    **{f"PSD {target}": replace(BASE, objective="psd", psd=PsdConfig(
        psd_target=target, psd_schedule="constant", psd_warmup=0.0, psd_select="low_confidence"))
       for target in ("swap", "self", "sinkhorn", "ema")},
    "SigLIP": replace(BASE, objective="siglip"),
}  # fmt: skip
"""Recipes that are timed; PSD self-distils half of each batch from the first step on."""


def main() -> None:
    """Run what is missing, and write table, plot and report."""
    options = read_options("psd_noise", __doc__)
    seeds = range(options.seeds)
    # The noise that matters most runs first, and the settings tried beside the arms last.
    shares = sorted(NOISE, key=lambda noise: noise != STUDIED)
    trials = [
        *(Trial(arm, ARMS[arm], seed, noise) for noise in shares for seed in seeds for arm in ARMS),
        *(Trial(f"PSD {name}", tried(psd), seeds[0], STUDIED) for name, psd in TRIED.items()),
    ]
    results = run_trials(trials, run, options.emoji, options.out, options.jobs)
    times = time_steps(TIMED, "InfoNCE", options.out / "step_times.json")
    head, *rows = main_table(results)
    table([head, *rows])
    plot(results, options.report.with_suffix(".png"))
    text = "\n\n".join(
        [
            circumstances(*of_trials("psd_noise", seeds, options.jobs)),
            f"![Zero-shot top-1 against the share of shuffled captions]({options.report.stem}.png)",
            markdown_table([head, *rows]),
            f"Other settings of self-distillation, {STUDIED:.0%} of captions shuffled, one training each:",
            markdown_table(tried_table(results)),
            f"Seconds of a training step relative to InfoNCE's, batch of {BASE.batch_size}, one thread, "
            f"steps of all taken in turn in one process (median and quartiles of {ROUNDS} rounds):",
            markdown_table(
                [["objective", "relative time"], *([name, step.text] for name, step in times.items())]
            ),
        ]
    )
    write_figures(options.report, "Noisy captions: InfoNCE, self-distillation, SigLIP", text)


def run(trial: Trial, emoji: Path) -> Result:
    """Train on noisy captions, score on clean ones."""
    train_pairs, test_pairs, names = load_emoji(emoji)
    clip, speed = train(trial.recipe, shuffle_captions(train_pairs, trial.noise, trial.seed), trial.seed)
    return {**score(clip, test_pairs, names), **speed}


def tried(psd: PsdConfig) -> Recipe:
    """Return the recipe of self-distillation under other settings."""
    return replace(BASE, objective="psd", psd=psd)


def main_table(results: list[Result]) -> list[list[str]]:
    """Build a row for each share of noise and objective."""
    scores = ("zero-shot top-1, %", "top-5, %", "R@1 image to text, %", "R@1 text to image, %")
    rows = [["shuffled", "objective", *scores]]
    figures = ("zeroshot_top1", "zeroshot_top5", "retrieval_i2t_r1", "retrieval_t2i_r1")
    for noise in NOISE:
        for arm in ARMS:
            cells = [plus_minus(*over_seeds(results, arm, figure, noise)[:2]) for figure in figures]
            rows.append([f"{noise:.0%}", arm, *cells])
    return rows


def tried_table(results: list[Result]) -> list[list[str]]:
    """Build a row for each setting at the studied noise, best first."""
    names = ["InfoNCE", "PSD swap", "PSD ema", *(f"PSD {name}" for name in TRIED)]
    scored = {name: over_seeds(results, name, "zeroshot_top1", STUDIED) for name in names}
    own = {name: agreement(results, name) for name in names}
    rows = [
        [name, plus_minus(*scored[name][:2]), own[name]]
        for name in sorted(names, key=lambda name: -scored[name][0])
    ]
    return [["setting", "zero-shot top-1, %", "targets that still name the pair"], *rows]


def agreement(results: list[Result], arm: str) -> str:
    """Return how often the target of a self-distilled row ranked its own pair first in the last epoch, in per
    cent; empty for other objectives."""
    found = [result["last_epoch"] for result in results_of(results, arm, STUDIED)]
    shares = [one["psd/agreement"] for one in found if "psd/agreement" in one]
    return percent(statistics.mean(shares)) if shares else ""


def plot(results: list[Result], out: Path) -> None:
    """Plot scores over noise: one panel per score, one line per objective, bars of one standard deviation."""
    panels = {
        "zeroshot_top1": "zero-shot top-1",
        "retrieval_i2t_r1": "retrieval R@1, image to text",
        "retrieval_t2i_r1": "retrieval R@1, text to image",
    }
    with styled():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for arm, colour in COLOURS.items():
                points = [over_seeds(results, arm, name, noise) for noise in NOISE]
                means, spreads = [100 * p[0] for p in points], [100 * p[1] for p in points]
                shares = [100 * noise for noise in NOISE]
                axes.errorbar(shares, means, spreads, color=colour, marker="o", ms=4, capsize=3, label=arm)
            axes.set_title(title)
            axes.set_xlabel("captions shuffled, %")
            axes.set_ylabel("%")
            axes.set_xticks([100 * noise for noise in NOISE])
            axes.set_ylim(bottom=0)
        figure.axes[0].legend(frameon=False)
        save_figure(figure, out)


if __name__ == "__main__":
    main()
