"""Run a pre-training, from its options to the last line on the terminal."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from beamclip.cluster import share
from beamclip.commands.after_training import SCORING, AfterTraining
from beamclip.commands.anchors import check_contexts, class_anchors, context_sources
from beamclip.commands.batches import check_batch_norms, check_batches, show_chosen, sized
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.options import PretrainConfig
from beamclip.commands.run import show_skipped, started_run
from beamclip.commands.scoring import ScoredData, score_zeroshot
from beamclip.commands.templates import seen_captions, with_templates
from beamclip.data.config import CaptionConfig
from beamclip.data.shards import Columns, Shard, check_texts, list_labelled, list_shards
from beamclip.errors import InputError
from beamclip.losses.config import PsdConfig
from beamclip.models.clip import LoadedClip, assemble, new_clip
from beamclip.models.export import write_card, write_open_clip_dir
from beamclip.option_texts import check_required
from beamclip.plots.curves import plot_curves
from beamclip.prompts.classes import ClassEntry, load_classes
from beamclip.prompts.fitting import fitting_of
from beamclip.runs.folder import MODEL, PLOTS, new_run_dir
from beamclip.summary import Summary
from beamclip.training.builders import PretrainingBuilder
from beamclip.training.method import initial_logits
from beamclip.training.optim import total_steps
from beamclip.training.waiting import WaitingWorkers
from beamclip.training.worker import Storage, TrainingJob


@dataclass(frozen=True)
class PretrainInputs:
    """Everything that the options of a pre-training name, loaded and checked."""

    shards: list[Shard]
    clip: LoadedClip
    """The untrained model, with the templates that fit the captions of the shards."""
    classes: list[ClassEntry]


def load_inputs(config: PretrainConfig, workers: WaitingWorkers | None) -> PretrainInputs:
    """Load and check every input before training is started.

    Args:
        workers: if given, their Ray is started while the model is built, which is the slow part.

    Raises:
        InputError: for the first input that cannot be used.
    """
    check_required(config)
    assert config.data is not None, "check_required() refuses it"
    if config.scoring.eval_data and config.classes is None:
        raise InputError("--eval-data is given, but no --classes FILE to score its labels with.")
    _refuse_idle_options(config)
    allow_missing = config.stream.allow_missing_shards
    shards = list_shards(config.data, allow_missing=allow_missing)
    check_batches(sized(config, shards), shards)
    check_texts(shards, columns_of(config), config.data)
    classes = load_classes(config.classes) if config.classes else []
    if config.scoring.eval_data:
        list_labelled(config.scoring.eval_data, allow_missing=allow_missing)
        check_contexts(classes, config.prompts, config.data, allow_missing=allow_missing)
    if workers is not None:
        workers.start_ray()
    clip = new_clip(config.model, config.seed, **initial_logits(config.objective))
    check_batch_norms(sized(config, shards), clip)
    print_stage("shards", f"{plural(len(shards), 'file')}, {plural(sum(s.samples for s in shards), 'image')}")
    captions = seen_captions(shards, columns_of(config), config.captions)
    fitting = fitting_of(captions, [entry.name for entry in classes]) if captions else None
    return PretrainInputs(shards, replace(clip, fitting=fitting), classes)


def _refuse_idle_options(config: PretrainConfig) -> None:
    """Raise InputError for an option that was changed but has no effect with the others."""
    captions = CaptionConfig(caption_columns=config.captions.caption_columns)
    idle: list[tuple[PsdConfig | CaptionConfig, PsdConfig | CaptionConfig, bool, str]] = [
        (config.psd, PsdConfig(), config.objective == "psd", f"with --objective {config.objective}"),
        (config.captions, captions, bool(captions.caption_columns), "without --caption-columns"),
    ]
    for section, default, used, circumstance in idle:
        changed = [f.name for f in fields(section) if getattr(section, f.name) != getattr(default, f.name)]
        if changed and not used:
            raise InputError(f"--{changed[0].replace('_', '-')} has no effect {circumstance}. Leave it out.")


def columns_of(config: PretrainConfig) -> Columns:
    """Return the columns to read: the caption and the further texts of each sample."""
    return Columns(caption=True, more_texts=config.captions.caption_columns)


def run_pretraining(config: PretrainConfig, workers: WaitingWorkers | None, *, began: float) -> Summary:
    """Run a pre-training and write its run folder; errors as in pretrain.pretrain.

    Args:
        workers: as yielded by waiting_workers.
        began: time.perf_counter() when the command began.
    """
    run_dir = new_run_dir(config.out, "pretrain")
    inputs = load_inputs(config, workers)
    given, config = config, sized(config, inputs.shards)
    show_chosen(given, config, inputs.shards)
    config = replace(config, prompts=with_templates(config.prompts, inputs.clip))
    with started_run("pretrain", config, run_dir, inputs.shards, workers, began=began) as run:
        trained = run.train(_job(config, inputs, run.storage), f"{config.model} by {config.objective}")
        clip = restore_clip(inputs.clip, trained.weights)
        write_open_clip_dir(clip, run_dir / MODEL, _card(config, {}))
        after = AfterTraining()
        if trained.history:
            after.attempt("curves", lambda: plot_curves(trained.history, run_dir / PLOTS / "curves.png"))
        metrics = after.attempt(SCORING, lambda: _score(config, clip, inputs.classes, run_dir)) or {}
        after.attempt("model card", lambda: write_card(clip, run_dir / MODEL, _card(config, metrics)))
        summary = run.finish(trained, after, metrics=metrics, stages={"steps": trained.step})
    show_skipped(trained, summary.counts.attempted)
    if metrics:
        top1, top5 = metrics["zeroshot_top1"], metrics["zeroshot_top5"]
        chance = percent(1 / len(inputs.classes))
        print(f"zero-shot top-1 {percent(top1)}, top-5 {percent(top5)}  (chance {chance})")
    print(f"{run_dir}: model/  plots/  summary.json")
    return summary


def _card(config: PretrainConfig, metrics: dict[str, float]) -> dict[str, Any]:
    return {"model": config.model, "objective": config.objective, "data": config.data, "metrics": metrics}


def _job(config: PretrainConfig, inputs: PretrainInputs, storage: Storage) -> TrainingJob:
    samples = sum(shard.samples for shard in inputs.shards)
    batch_size = config.stream.batch_size
    assert batch_size is not None
    return TrainingJob(
        build_method=PretrainingBuilder(
            share(inputs.clip, config.workers),
            config.augmentation,
            config.objective,
            config.psd,
            config.seed,
        ),
        shards=inputs.shards,
        columns=columns_of(config),
        image_size=inputs.clip.image_size,
        batch_size=batch_size,
        total_steps=total_steps(config.optim, samples, batch_size),
        seed=config.seed,
        threads=config.workers.threads_per_worker,
        stream=config.stream,
        augmentation=config.augmentation,
        captions=config.captions,
        optim=config.optim,
        cadence=config.cadence,
        storage=storage,
    )


def restore_clip(clip: LoadedClip, weights: dict[str, Tensor]) -> LoadedClip:
    """Load the trained weights into the model, in place, and return it with a new fingerprint.

    Anchors are cached by fingerprint: those of the untrained model must not be taken for the trained one's.

    Args:
        weights: as returned by loop.trained_weights.
    """
    own = {key.removeprefix("clip."): value for key, value in weights.items() if key.startswith("clip.")}
    clip.model.load_state_dict(own)
    clip.model.eval()
    trained = assemble(clip.model, clip.tokenizer, clip.model_cfg, clip.preprocess_cfg, address=clip.address)
    return replace(trained, fitting=clip.fitting)


def _score(
    config: PretrainConfig, clip: LoadedClip, classes: list[ClassEntry], run_dir: Path
) -> dict[str, float]:
    if config.scoring.eval_data is None:
        return {}
    cache = run_dir.parent / "anchors"
    allow_missing = config.stream.allow_missing_shards
    external_sources = context_sources(
        classes, config.prompts, config.data, cache, allow_missing=allow_missing
    )
    anchors = class_anchors(classes, config.prompts, external_sources, clip, config.workers, cache)
    scoring = config.scoring
    data = ScoredData(
        config.scoring.eval_data, scoring.label_column, classes, scoring.scoring_batch, allow_missing
    )
    metrics, encoded = score_zeroshot(clip, anchors, data, config.workers)
    print_stage(
        "scored", f"{plural(len(encoded.labels), 'image')}, {plural(len(classes), 'class')}", "zero-shot"
    )
    return {**metrics, "scored_images": float(len(encoded.labels))}
