"""One transformer for two modalities: what sharing costs and gives at a small width.

python benchmarks/msclip.py --emoji FOLDER

FOLDER holds pairs.parquet (path, label, hexcode, split) and its images. Two separate towers, two towers of
the same width, MS-CLIP and MS-CLIP-S train on the same pairs for the same steps, and are scored on held-out
drawings. Trials with a result in --out are not run again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.emoji_pairs import encode_pairs, load_emoji
from support.options import of_trials, read_options
from support.pretraining import Recipe, score, train
from support.reports import circumstances, markdown_table, plus_minus, write_figures
from support.timing import StepTime, time_steps
from support.trials import Result, Trial, over_seeds, results_of, run_trials
from torch import Tensor, nn

from beamclip.commands.console import percent, table
from beamclip.models.clip import new_clip
from beamclip.plots.style import BLUE, GREEN, MUTED, ORANGE, save_figure, styled
from beamclip.training.config import OptimConfig
from beamclip.training.optim import shared_parameters

SIZE, PATCH = 32, 8
"""Sides of an image and of a patch, pixels."""
WIDTH, NARROW, LAYERS, EMBEDDING = 192, 128, 4, 128
"""Widths of vision and narrow text tower, in the proportion of B/32; number of blocks; embedding width."""

MATCHED = "separate towers, matched width"
_B32 = open_clip.get_model_config("ViT-B-32")
PUBLISHED = {
    "separate towers": ("ViT-B-32", {}),
    MATCHED: (
        "ViT-B-32", {"text_cfg": {**_B32["text_cfg"], "width": 768, "heads": 12}},
    ),
    "MS-CLIP": ("msclip-b32", {}),
    "MS-CLIP-S": ("msclip-s-b32", {}),
}  # fmt: skip
"""The same four models at the published size: a config, and the values that replace some of its own."""


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
    "separate towers": two_towers(NARROW),
    MATCHED: two_towers(WIDTH),
    "MS-CLIP": one_transformer(),
    "MS-CLIP-S": one_transformer(specialised=True, lateral_blocks=list(range(1, LAYERS))),
}
ARMS = {
    name: replace(BASE, model_changes={**config, "init_logit_scale": 1.609})
    for name, config in MODELS.items()
}
COLOURS = dict(zip(ARMS, (MUTED, ORANGE, BLUE, GREEN), strict=True))


def main() -> None:
    """Run what is missing, and write table, plot and report."""
    options = read_options("msclip", __doc__)
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
            f"![Zero-shot accuracy and embeddings of four models]({options.report.stem}.png)",
            markdown_table(scores),
            f"Sizes and speed, {LAYERS} blocks of width {WIDTH} on {SIZE} pixels in patches of {PATCH}. "
            "Step times are relative to separate towers of matched width, all taken in turn on one thread:",
            markdown_table(size_table(sizes, times)),
            "The same four at the published size (B/32):",
            markdown_table(size_table(published, {})),
        ]
    )
    write_figures(options.report, "One transformer for two modalities", text)


def run(trial: Trial, emoji: Path) -> Result:
    """Train, score, and project some pairs onto a plane."""
    train_pairs, test_pairs, names = load_emoji(emoji)
    clip, speed = train(trial.recipe, train_pairs, trial.seed)
    images, texts = encode_pairs(clip, test_pairs, test_pairs.captions)
    return {**score(clip, test_pairs, names), **speed, "plane": on_a_plane(images, texts)}


def on_a_plane(images: Tensor, texts: Tensor) -> dict[str, list[list[float]]]:
    """Return the first two principal components of every tenth pair, as in arXiv 2203.02053."""
    both = torch.cat([images[::10], texts[::10]])
    centred = both - both.mean(dim=0)
    _, _, components = torch.pca_lowrank(centred, q=2, center=False)
    placed = (centred @ components).mul(1000).round().div(1000)
    first, second = placed.chunk(2)
    return {"images": first.tolist(), "texts": second.tolist()}


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model's parameters, each tensor counted once."""

    parameters: int
    tokens: int
    """Parameters of the token embeddings."""
    shared: int
    """Parameters that both towers use."""


def sizes_of(model: str, changes: dict[str, Any]) -> Sizes:
    """Count the parameters of a config."""
    clip = new_clip(model, 0, **changes).model
    shared = shared_parameters(clip)
    parameters = list(clip.parameters())
    tokens = [m.weight.numel() for m in clip.modules() if isinstance(m, nn.Embedding)]
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        tokens=max(tokens),
        shared=sum(p.numel() for p in parameters if id(p) in shared),
    )


def size_table(sizes: dict[str, Sizes], times: dict[str, StepTime]) -> list[list[str]]:
    """Build a row for each model, with what it saves against separate towers of matched width."""
    matched = sizes[MATCHED]
    rows = [
        [
            "model",
            "parameters",
            "fewer",
            "fewer, tokens apart",
            "shared",
            *(["images/s", "step time"] if times else []),
        ]
    ]
    for name, size in sizes.items():
        speed = [f"{times[name].images_per_second:,.0f}", times[name].text] if times else []
        apart = 1 - (size.parameters - size.tokens) / (matched.parameters - matched.tokens)
        rows.append(
            [
                name,
                f"{size.parameters / 1e6:.2f} M",
                percent(1 - size.parameters / matched.parameters),
                percent(apart),
                percent(size.shared / size.parameters),
                *speed,
            ]
        )
    return rows


def score_table(results: list[Result]) -> list[list[str]]:
    """Build a row of scores for each model."""
    head = [
        "model",
        "zero-shot top-1, %",
        "top-5, %",
        "R@1 image to text, %",
        "R@1 text to image, %",
        "modality gap",
    ]
    figures = ("zeroshot_top1", "zeroshot_top5", "retrieval_i2t_r1", "retrieval_t2i_r1")
    rows = [head]
    for arm in ARMS:
        cells = [plus_minus(*over_seeds(results, arm, figure)[:2]) for figure in figures]
        gap = plus_minus(*over_seeds(results, arm, "modality_gap")[:2], scale=1.0, digits=3)
        rows.append([arm, *cells, gap])
    return rows


def plot(results: list[Result], out: Path) -> None:
    """Plot zero-shot accuracy of the models, and where the embeddings of the first seed's pairs lie."""
    with styled():
        figure = Figure(figsize=(13, 3.4), layout="constrained")
        bars, *planes = figure.subplots(1, 1 + len(ARMS), width_ratios=[1.5] + [1] * len(ARMS))
        scored = [over_seeds(results, arm, "zeroshot_top1") for arm in ARMS]
        means, spreads = [100 * s[0] for s in scored], [100 * s[1] for s in scored]
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
    gap = over_seeds(results, arm, "modality_gap")[0]
    axes.set_title(f"{arm.replace(', ', chr(10))}\ngap {gap:.2f}", fontsize=9)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-1.05, 1.05)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)


if __name__ == "__main__":
    main()
