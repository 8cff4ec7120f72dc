"""One transformer for two modalities: what sharing costs and gives at a small width.

python benchmarks/msclip.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, split) and its images. Separate towers, towers whose blocks
share feed-forward layers, attention, both (MS-CLIP) or layer norms as well, and MS-CLIP-S train on the same
pairs for the same steps, and are scored on held-out drawings. Trials with a result in --out are not run
again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import open_clip
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.emoji_pairs import encode_pairs
from support.options import of_trials, read_options
from support.paired import Pair, compared, mean_on_test, on_test
from support.pretraining import Recipe, score, train
from support.reports import circumstances, markdown_table, plus_minus, write_figures
from support.study_data import load_data
from support.timing import StepTime, time_steps
from support.trials import Result, Trial, keep_scores, results_of, run_trials
from torch import Tensor

from beamclip.commands.console import percent, table
from beamclip.models.clip import new_clip
from beamclip.plots.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, save_figure, styled
from beamclip.training.config import OptimConfig
from beamclip.training.optim import shared_parameters

SIZE, PATCH = 32, 8
"""Sides of an image and of a patch, pixels."""
WIDTH, NARROW, LAYERS, EMBEDDING = 192, 128, 4, 128
"""Widths of vision and narrow text tower, in the proportion of B/32; number of blocks; embedding width."""

NARROW_TEXT = "separate towers, narrow text"
MATCHED = "separate towers, matched width"
UNIFIED = "MS-CLIP"
_B32 = open_clip.get_model_config("ViT-B-32")
PUBLISHED = {
    NARROW_TEXT: ("ViT-B-32", {}),
    MATCHED: (
        "ViT-B-32", {"text_cfg": {**_B32["text_cfg"], "width": 768, "heads": 12}},
    ),
    UNIFIED: ("msclip-b32", {}),
    "MS-CLIP-S": ("msclip-s-b32", {}),
}  # fmt: skip
"""Four of the models at the published size: a config, and the values that replace some of its own."""


def two_towers(text_width: int) -> dict[str, Any]:
    """Return values of a model config: a ViT, and a text tower of this width."""
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS}
    text = {"context_length": 16, "vocab_size": 49408, "width": text_width, "heads": text_width // 64}
    return {
        "embed_dim": EMBEDDING,
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {**text, "layers": LAYERS},
        "custom_text": True,
    }


def one_transformer(**msclip: Any) -> dict[str, Any]:
    """Return values of a model config: MS-CLIP or MS-CLIP-S of the same sizes."""
    return {**two_towers(WIDTH), "msclip": msclip}


BASE = Recipe(model="tiny-vit", batch_size=128, optim=OptimConfig(epochs=16, lr=1e-3))
MODELS = {
    NARROW_TEXT: two_towers(NARROW),
    MATCHED: two_towers(WIDTH),
    "feed-forward shared": one_transformer(shared=["feed_forward"]),
    "attention shared": one_transformer(shared=["attention"]),
    UNIFIED: one_transformer(),
    "layer norms shared too": one_transformer(shared=["attention", "feed_forward", "norms"]),
    "MS-CLIP-S": one_transformer(specialised=True, lateral_blocks=list(range(1, LAYERS))),
}
ARMS = {
    name: replace(BASE, model_changes={**config, "init_logit_scale": 1.609})
    for name, config in MODELS.items()
}
COLOURS = dict(zip(ARMS, (MUTED, INK, ORANGE, "#56B4E9", BLUE, PURPLE, GREEN), strict=True))


def main() -> None:
    """Run what is missing, and write table, plot and report."""
    options = read_options("msclip", __doc__, seeds=5)
    seeds = range(options.seeds)
    trials = [Trial(arm, recipe, seed) for seed in seeds for arm, recipe in ARMS.items()]
    results = run_trials(trials, run, options.emoji, options.out, options.jobs)
    times = time_steps(ARMS, MATCHED, options.out / "step_times.json")
    sizes = {arm: sizes_of(recipe.model, recipe.model_changes) for arm, recipe in ARMS.items()}
    published = {name: sizes_of(*model) for name, model in PUBLISHED.items()}
    scores = score_table(results)
    table(scores)
    plot(results, options.report.with_suffix(".png"))
    text = "\n\n".join(
        [
            circumstances(*of_trials("msclip", seeds, options.jobs)),
            f"![Zero-shot accuracy and embeddings of each model]({options.report.stem}.png)",
            markdown_table(scores),
            "Differences on test data, seed by seed: zero-shot top-1 in percentage points, with intervals of "
            "95 % and p-values adjusted by Holm's method in each column:",
            markdown_table(difference_table(results)),
            f"Sizes and speed, {LAYERS} blocks of width {WIDTH} on {SIZE} pixels in patches of {PATCH}. "
            "Step times are relative to separate towers of matched width, all taken in turn on one thread:",
            markdown_table(size_table(sizes, times)),
            "Four of them at the published size (B/32):",
            markdown_table(size_table(published, {})),
        ]
    )
    write_figures(options.report, "One transformer for two modalities", text)
    keep_scores(results, options.report)


def run(trial: Trial, emoji: Path) -> Result:
    """Train, score, and project some pairs onto a plane."""
    data = load_data("emoji", emoji, emoji)
    clip, speed = train(trial.recipe, data.train, trial.seed)
    halves = {half: score(clip, pairs, data.names) for half, pairs in data.halves.items()}
    test = data.halves["test"]
    plane = on_a_plane(*encode_pairs(clip, test, test.captions))
    return {**halves, **speed, "plane": plane, "zeroshot_top1": halves["validation"]["zeroshot_top1"]}


def on_a_plane(images: Tensor, texts: Tensor) -> dict[str, list[list[float]]]:
    """Return the first two principal components of every fifth pair, as in arXiv 2203.02053."""
    both = torch.cat([images[::5], texts[::5]])
    centred = both - both.mean(dim=0)
    _, _, components = torch.pca_lowrank(centred, q=2, center=False)
    placed = (centred @ components).mul(1000).round().div(1000)
    first, second = placed.chunk(2)
    return {"images": first.tolist(), "texts": second.tolist()}


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model's parameters, each tensor counted once."""

    parameters: int
    shared: int
    """Parameters that both towers use."""


def sizes_of(model: str, changes: dict[str, Any]) -> Sizes:
    """Count the parameters of a config."""
    clip = new_clip(model, 0, **changes).model
    shared = shared_parameters(clip)
    parameters = list(clip.parameters())
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        shared=sum(p.numel() for p in parameters if id(p) in shared),
    )


def size_table(sizes: dict[str, Sizes], times: dict[str, StepTime]) -> list[list[str]]:
    """Build a row for each model, with what it saves against separate towers."""
    narrow, matched = sizes[NARROW_TEXT].parameters, sizes[MATCHED].parameters
    heads = ["parameters", "fewer than narrow text", "fewer than matched width", "shared"]
    rows = [["model", *heads, *(["images/s", "step time"] if times else [])]]
    for name, size in sizes.items():
        speed = [f"{times[name].images_per_second:,.0f}", times[name].text] if times else []
        rows.append(
            [
                name,
                f"{size.parameters / 1e6:.2f} M",
                percent(1 - size.parameters / narrow),
                percent(1 - size.parameters / matched),
                percent(size.shared / size.parameters),
                *speed,
            ]
        )
    return rows


def score_table(results: list[Result]) -> list[list[str]]:
    """Build a row of scores on test data for each model."""
    figures = {
        "zeroshot_top1": "zero-shot top-1, %",
        "zeroshot_top5": "top-5, %",
        "retrieval_i2t_r1": "R@1 image to text, %",
        "retrieval_t2i_r1": "R@1 text to image, %",
    }
    rows = [["model", *figures.values(), "modality gap"]]
    for arm in ARMS:
        cells = [mean_on_test(results, arm, figure) for figure in figures]
        gaps = on_test(results, arm, "modality_gap")
        gap = plus_minus(float(np.mean(gaps)), float(np.std(gaps, ddof=1)), scale=1.0, digits=3)
        rows.append([arm, *cells, gap])
    return rows


def difference_table(results: list[Result]) -> list[list[str]]:
    """Build a row for each model: its differences to matched towers and to MS-CLIP."""
    comparisons = {
        f"zero-shot against {MATCHED}": (MATCHED, "zeroshot_top1"),
        f"zero-shot against {UNIFIED}": (UNIFIED, "zeroshot_top1"),
        f"modality gap against {MATCHED}, hundredths": (MATCHED, "modality_gap"),
    }
    columns = [
        compared(results, [Pair(arm, other) for arm in ARMS if arm != other], figure)
        for other, figure in comparisons.values()
    ]
    rows = [["model", *comparisons]]
    for arm in ARMS:
        pairs = [Pair(arm, other) for other, _ in comparisons.values()]
        rows.append([arm, *(cells.get(pair, "") for cells, pair in zip(columns, pairs, strict=True))])
    return rows


def plot(results: list[Result], out: Path) -> None:
    """Plot zero-shot accuracy of the models, and where the embeddings of the first seed's pairs lie."""
    with styled():
        figure = Figure(figsize=(13, 3.4), layout="constrained")
        bars, *planes = figure.subplots(1, 1 + len(ARMS), width_ratios=[1.7] + [1] * len(ARMS))
        scored = [on_test(results, arm, "zeroshot_top1") for arm in ARMS]
        means, spreads = [100 * np.mean(s) for s in scored], [100 * np.std(s, ddof=1) for s in scored]
        bars.barh(list(ARMS), means, xerr=spreads, color=list(COLOURS.values()), height=0.6, capsize=3)
        bars.invert_yaxis()
        bars.set_axisbelow(True)
        bars.set_title("zero-shot top-1, %")
        for axes, arm in zip(planes, ARMS, strict=True):
            draw_plane(axes, arm, results)
        figure.legend(
            *planes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, markerscale=2
        )
        save_figure(figure, out)


def draw_plane(axes: Axes, arm: str, results: list[Result]) -> None:
    """Plot images and texts of one model, with its modality gap in the title."""
    first = min(results_of(results, arm), key=lambda result: result["trial"]["seed"])
    for kind, colour in (("images", BLUE), ("texts", ORANGE)):
        across, up = zip(*first["plane"][kind], strict=True)
        axes.scatter(across, up, s=5, color=colour, alpha=0.6, linewidths=0, label=kind)
    gap = np.mean(on_test(results, arm, "modality_gap"))
    axes.set_title(f"{fill(arm, 16)}\ngap {gap:.2f}", fontsize=9)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-1.05, 1.05)
    axes.set_aspect("equal")
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])
    axes.tick_params(labelsize=7)


if __name__ == "__main__":
    main()
