"""The evaluator against independent implementations, and its intervals against a simulated truth.

python benchmarks/evaluation.py --out FOLDER [--model RUN --data SHARDS --train-data SHARDS --classes FILE]
                                [--label-column NAME] [--parts coverage knn probe clip_benchmark]

coverage: how often a 95 % interval holds the truth, in so many draws of a simulated data set. The truth is
known in closed form for shares, and from a million draws for the calibration error.
knn and probe need the model and the data: brute force in double precision, and scikit-learn on the same
features.
clip_benchmark (1.6.2, if installed) scores the same model on the same images, which are written out in its
webdataset form: zero-shot classification and retrieval, in percentage points.
"""

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.preprocessing import StandardScaler

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.console import table
from beamclip.commands.evaluate import evaluate
from beamclip.commands.options import EvaluateConfig
from beamclip.data.listing import list_labelled
from beamclip.data.shards import Columns, iterate_rows
from beamclip.evaluation.encode import Encoded, EncodeSpec, encode_labelled
from beamclip.evaluation.intervals import differences, figures
from beamclip.evaluation.knn import knn_ranks, nearest_neighbours
from beamclip.evaluation.probe import Probe, fit_probe
from beamclip.evaluation.statistic import CalibrationError, Ratio, Statistic, class_mean, mean
from beamclip.models.clip import load_clip
from beamclip.prompts.classes import load_classes
from beamclip.prompts.config import PromptConfig

HERE = WorkersConfig(num_workers=0)
TEMPLATES = ("{}", "a photo of a {}.")
Floats = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    """Run the parts that are asked for, print their tables, and write them as JSON."""
    options = read_options()
    parts: dict[str, Callable[[], Any]] = {"coverage": partial(coverage, options.trials)}
    if options.model:
        parts["knn"] = partial(against_brute_force, options)
        parts["probe"] = partial(against_scikit_learn, options)
        parts["clip_benchmark"] = partial(against_clip_benchmark, options)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        if name not in parts:
            print(f"{name}: left out, since it needs --model, --data, --train-data and --classes")
            continue
        print(f"\n{name}")
        found = parts[name]()
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where results are written")
    parser.add_argument("--model", help="a run or a model directory")
    parser.add_argument("--data", help="labelled and captioned shards to score on")
    parser.add_argument("--train-data", help="labelled shards for probe and kNN")
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--trials", type=int, default=1000, help="simulated data sets")
    names = ["coverage", "knn", "probe", "clip_benchmark"]
    parser.add_argument("--parts", nargs="*", default=names, choices=names)
    return parser.parse_args()


def coverage(trials: int) -> dict[str, float]:
    """How often 95 % intervals hold the truth behind simulated evaluations of 500 images."""
    truths = simulated_truths()
    held = dict.fromkeys(truths, 0)
    for seed in range(trials):
        statistics, other = simulated(500, seed)
        found = figures(statistics, 500, seed=seed)
        ends = {name: (each.low, each.high) for name, each in found.items()}
        paired = differences({"share": statistics["share"]}, {"share": other}, 500, seed=seed)["share"]
        ends["difference"] = (paired.low, paired.high)
        for name, truth in truths.items():
            held[name] += ends[name][0] <= truth <= ends[name][1]
    shares = {name: number / trials for name, number in held.items()}
    rows = [[name, f"{truths[name]:.4f}", f"{100 * shares[name]:.1f} %"] for name in truths]
    table([["figure", "truth", f"held in {trials:,} draws"], *rows])
    return shares


def simulated(images: int, seed: int) -> tuple[dict[str, Statistic], Statistic]:
    """Figures of a simulated model, and the hits of another one that is right a little less often."""
    random = np.random.default_rng((seed, 1))
    labels = random.choice(10, images, p=CLASS_SHARES)
    confidence = random.random(images)
    right = (random.random(images) < confidence**2).astype(float)
    hit = (random.random(images) < CLASS_ACCURACIES[labels]).astype(float)
    worse = hit * (random.random(images) < 0.9)
    captions = random.integers(1, 6, images).astype(float)
    hard = random.random(images)
    found = random.binomial(captions.astype(int), hard).astype(float)
    statistics: dict[str, Statistic] = {
        "share": mean(hit),
        "rare share": mean(hit * (random.random(images) < 0.05)),
        "class mean": class_mean(hit, labels),
        "caption recall": Ratio(found, captions),
        "calibration error": CalibrationError(right, confidence),
    }
    return statistics, mean(worse)


CLASS_SHARES = np.arange(1, 11) / 55
CLASS_ACCURACIES = np.linspace(0.1, 0.9, 10)


def simulated_truths() -> dict[str, float]:
    """What the figures of `simulated` are in a data set without end."""
    share = float(CLASS_SHARES @ CLASS_ACCURACIES)
    endless, _ = simulated(1_000_000, seed=10**6)
    error = float(endless["calibration error"](np.ones((1, 1_000_000)))[0])
    return {
        "share": share,
        "rare share": 0.05 * share,
        "class mean": float(CLASS_ACCURACIES.mean()),
        "caption recall": 0.5,
        "calibration error": error,
        "difference": 0.1 * share,
    }


def encoded_by(options: argparse.Namespace, address: str, spec: EncodeSpec) -> Encoded:
    """Encode a data set by the model of the command."""
    ids = [entry.id for entry in load_classes(options.classes)]
    return encode_labelled(load_clip(options.model), address, ids, options.label_column, spec, HERE)


def features_of(options: argparse.Namespace) -> tuple[Encoded, Encoded]:
    """Features of the training and of the test images."""
    spec = EncodeSpec(embeddings=False, features=True)
    return encoded_by(options, options.train_data, spec), encoded_by(options, options.data, spec)


def against_brute_force(options: argparse.Namespace) -> dict[str, float]:
    """Accuracy of nearest neighbours, and by one image after the other in double precision."""
    train, test = features_of(options)
    classes = len(load_classes(options.classes))
    found = nearest_neighbours(train.features, train.labels, test.features, 20)
    figures: dict[str, float] = {}
    for number in (10, 20):
        ranks = knn_ranks(found, test.labels, classes, neighbours=number)
        figures[f"knn{number} beamclip"] = float((ranks < 1).float().mean())
        figures[f"knn{number} brute force"] = brute_force(train, test, classes, number)
    table([["figure", "top-1"], *([name, f"{100 * each:.3f} %"] for name, each in figures.items())])
    return figures


def brute_force(train: Encoded, test: Encoded, classes: int, neighbours: int) -> float:
    """The definition, image by image."""
    bank, queries = (each.features.double().numpy() for each in (train, test))
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    hits = 0
    for query, label in zip(queries, test.labels.tolist(), strict=True):
        cosines = bank @ (query / np.linalg.norm(query))
        nearest = np.argsort(-cosines)[:neighbours]
        votes = np.bincount(
            train.labels.numpy()[nearest], np.exp((cosines[nearest] - 1) / 0.07), minlength=classes
        )
        hits += int(votes.argmax() == label)
    return hits / len(queries)


def _top1(probe: Probe, test: Encoded) -> float:
    return float((probe.ranks(test.features, test.labels) < 1).double().mean())


def against_scikit_learn(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The probe with the C that it chose, and scikit-learn with the same C, on the same features."""
    train, test = features_of(options)
    began = time.perf_counter()
    chosen = fit_probe(train.features, train.labels)
    searched = time.perf_counter() - began
    began = time.perf_counter()
    constant = chosen.inverse_regularisation
    ours = fit_probe(train.features, train.labels, inverse_regularisation=constant)
    fitted = time.perf_counter() - began
    scaler = StandardScaler().fit(train.features.numpy())
    classes = len(np.unique(train.labels.numpy()))
    began = time.perf_counter()
    model = LogisticRegression(C=constant, tol=1e-3 / classes, max_iter=1000)
    model.fit(scaler.transform(train.features.numpy()), train.labels.numpy())
    reference = time.perf_counter() - began
    accuracy = float(model.score(scaler.transform(test.features.numpy()), test.labels.numpy()))
    rows = {
        "beamclip, C searched": {"C": constant, "top1": _top1(chosen, test), "seconds": searched},
        "beamclip, this C": {
            "C": constant,
            "top1": _top1(ours, test),
            "seconds": fitted,
            "iterations": ours.iterations,
        },
        "scikit-learn, this C": {
            "C": constant,
            "top1": accuracy,
            "seconds": reference,
            "iterations": int(model.n_iter_.max()),
        },
    }
    head = ["", "C", "top1", "seconds", "iterations"]
    table([head, *([name, *(f"{row.get(key, 0):.4g}" for key in head[1:])] for name, row in rows.items())])
    return rows


def against_clip_benchmark(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Zero-shot and retrieval figures of both, in percent."""
    try:
        import clip_benchmark  # noqa: F401 (is it there?)
    except ImportError:
        print("left out: clip_benchmark is not installed (pip install clip_benchmark==1.6.2)")
        return {}
    config = EvaluateConfig(
        model=options.model,
        data=(options.data,),
        classes=options.classes,
        label_column=options.label_column,
        tasks=("zeroshot", "retrieval"),
        prompts=PromptConfig(templates=TEMPLATES),
        out=options.out / "evaluated",
        workers=HERE,
    )
    ours = evaluate(config).metrics
    theirs = scored_by_clip_benchmark(options)
    pairs = {
        "zeroshot_top1": "acc1",
        "zeroshot_top5": "acc5",
        "zeroshot_mean_class_top1": "mean_per_class_recall",
        **{f"retrieval_i2t_r{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)},
        **{f"retrieval_t2i_r{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)},
    }
    rows = {
        name: {"beamclip": 100 * (ours[name] or 0.0), "clip_benchmark": 100 * theirs[other]}
        for name, other in pairs.items()
    }
    table(
        [
            ["figure", "beamclip", "clip_benchmark"],
            *([n, *(f"{v:.3f}" for v in row.values())] for n, row in rows.items()),
        ]
    )
    return rows


def scored_by_clip_benchmark(options: argparse.Namespace) -> dict[str, float]:
    """Write the images in clip_benchmark's form, and score the model by its own functions."""
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import zeroshot_retrieval

    directory = Path(options.model) / "model" if (Path(options.model) / "model").is_dir() else options.model
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    model.eval()
    found: dict[str, float] = {}
    for task in ("zeroshot_retrieval", "zeroshot_classification"):
        root = options.out / task
        write_wds(options, root, retrieval=task == "zeroshot_retrieval")
        dataset = build_dataset("wds/emoji", root=str(root), transform=transform, split="test", task=task)
        collate = get_dataset_collate_fn("mscoco_captions" if task == "zeroshot_retrieval" else "wds/emoji")
        loader = torch.utils.data.DataLoader(dataset.batched(64, collation_fn=collate), batch_size=None)
        if task == "zeroshot_retrieval":
            found |= zeroshot_retrieval.evaluate(
                model, loader, tokenizer, device="cpu", amp=False, recall_k_list=[1, 5, 10]
            )
        else:
            found |= classified_by_clip_benchmark(model, loader, tokenizer, dataset)
    return {name: float(value) for name, value in found.items()}


def classified_by_clip_benchmark(model: Any, loader: Any, tokenizer: Any, dataset: Any) -> dict[str, float]:
    """Accuracies from clip_benchmark's logits: its own function for them fails with numpy 2.4."""
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier

    classes, templates = dataset.classes, dataset.templates
    classifier = zero_shot_classifier(model, tokenizer, classes, templates, "cpu", amp=False)
    logits, targets = run_classification(model, classifier, loader, "cpu", amp=False)
    labels = np.arange(len(classes))
    return {
        "acc1": top_k_accuracy_score(targets, logits, k=1, labels=labels),
        "acc5": top_k_accuracy_score(targets, logits, k=5, labels=labels),
        "mean_per_class_recall": balanced_accuracy_score(targets, logits.argmax(dim=1)),
    }


def write_wds(options: argparse.Namespace, root: Path, *, retrieval: bool) -> None:
    """Write the labelled images as clip_benchmark reads them: a tar, class names and templates."""
    entries = load_classes(options.classes)
    place = {entry.id: index for index, entry in enumerate(entries)}
    (root / "test").mkdir(parents=True, exist_ok=True)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval" if retrieval else "classification")
    (root / "classnames.txt").write_text("\n".join(entry.name for entry in entries))
    templates = "\n".join(template.replace("{}", "{c}") for template in TEMPLATES)
    (root / "zeroshot_classification_templates.txt").write_text(templates)
    columns = Columns(label=options.label_column, everything=True)
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for shard in list_labelled(options.data):
            for row in iterate_rows(shard, columns, range(shard.samples)):
                if row["problem"]:
                    continue
                parts = {"png": row["image"], "cls": str(place[row["label"]]).encode()}
                if retrieval:
                    parts = {"png": row["image"], "txt": "\n".join(row["texts"]).encode()}
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{row['key']}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
