"""Run a pre-training, from its options to the last line on the terminal."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from beamclip.cluster.session import share
from beamclip.commands.after_training import SCORING, AfterTraining, draw_curves
from beamclip.commands.anchors import class_anchors
from beamclip.commands.batch_norms import check_batch_norms
from beamclip.commands.batches import show_chosen, sized
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.contexts import context_sources
from beamclip.commands.dry_run import here, show_plan
from beamclip.commands.frozen_towers import check_frozen_towers, locked_towers
from beamclip.commands.lineage import model_ref
from beamclip.commands.options import PretrainConfig
from beamclip.commands.pretrain_data import PretrainData, columns_of
from beamclip.commands.run import show_skipped, started_run
from beamclip.commands.scoring import ModelScores, ScoredData, score_zeroshot
from beamclip.commands.sources import show_sources
from beamclip.commands.templates import seen_captions, with_templates
from beamclip.commands.validation import pretraining_costs, pretraining_validation, with_validation
from beamclip.commands.validation_data import validated_on
from beamclip.data.shards import Shard
from beamclip.errors import InputError
from beamclip.evaluation.results import write_scores
from beamclip.export.card import Card
from beamclip.export.open_clip_dir import write_card, write_open_clip_dir
from beamclip.models.clip import LoadedClip, assemble, load_clip, named_config, new_clip, with_logit_bias
from beamclip.models.model_config import config_difference
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import ClassEntry, save_classes
from beamclip.prompts.contexts import ContextSource
from beamclip.prompts.fitting import fitting_of
from beamclip.prompts.templates import resolve_templates
from beamclip.runs.folder import CLASSES_FILE, MODEL
from beamclip.summary import Summary
from beamclip.training.builders import PretrainingBuilder, ValidationBuilder
from beamclip.training.pretraining import initial_logits
from beamclip.training.recipe import total_steps
from beamclip.training.waiting import WaitingWorkers
from beamclip.training.worker import Storage, TrainingJob


def _untrained_model(config: PretrainConfig, data: PretrainData) -> LoadedClip:
    """Return the model before its training, with the templates that fit the captions of the shards."""
    clip = _initial_model(config)
    check_frozen_towers(config, clip)
    shards = data.shards
    check_batch_norms(sized(config, shards), clip)
    print_stage("shards", f"{plural(len(shards), 'file')}, {plural(sum(s.samples for s in shards), 'image')}")
    captions = seen_captions(shards, columns_of(config), config.captions)
    if not captions:
        return clip
    return replace(clip, fitting=fitting_of(captions, [entry.name for entry in data.classes]))


def _initial_model(config: PretrainConfig) -> LoadedClip:
    """Return a new model, or with --init another one's config and weights.

    Raises:
        InputError: there is no such model, or --model names another config than that of --init.
    """
    logits = initial_logits(config.objective)
    if config.init is None:
        return new_clip(str(config.model), config.seed, **logits)
    clip = load_clip(config.init)
    if config.model is not None:
        _check_config(config.model, config.init, clip)
    scale = float(clip.model.logit_scale.detach().exp())
    print_stage("init", config.init, f"logit scale {scale:.4g}")
    if config.objective == "siglip" and clip.model.logit_bias is None:
        clip = with_logit_bias(clip, logits["init_logit_bias"])
        print_stage("init", f"it has no logit bias: siglip begins with {logits['init_logit_bias']:g}")
    return clip


def _check_config(model: str, init: str, clip: LoadedClip) -> None:
    difference = config_difference(named_config(model), clip.model_cfg)
    if difference:
        raise InputError(
            f"--model {model}: is not the config of --init {init}: {difference}, in this order. "
            "Leave --model out, or name the config that these weights belong to."
        )


def run_pretraining(
    config: PretrainConfig, data: PretrainData, run_dir: Path, workers: WaitingWorkers | None, *, began: float
) -> Summary:
    """Run a pre-training and write its run folder; errors as in pretrain.pretrain.

    Args:
        data: as returned by load_data.
        run_dir: folder of the run, which may not exist yet.
        workers: as yielded by waiting_workers; their Ray was started.
        began: time.perf_counter() when the command began.
    """
    untrained = _untrained_model(config, data)
    given, config = config, sized(config, data.shards)
    show_chosen(given, config, data.shards)
    show_sources(config, data.shards)
    config = replace(config, prompts=with_templates(config.prompts, untrained))
    config = with_validation(
        config,
        data.classes,
        sum(shard.samples for shard in data.shards),
        lambda: pretraining_costs(untrained, data.classes, config.prompts),
    )
    learned_from = [model_ref(config.init, untrained.fingerprint)] if config.init else []
    with started_run(
        "pretrain", config, run_dir, data.shards, workers, teachers=learned_from, began=began
    ) as run:
        if data.classes:
            save_classes(data.classes, run_dir / CLASSES_FILE)
        external_sources = _external_sources(config, data.classes, run_dir)
        validation = None
        if config.validation.eval_every:
            prompts = class_prompts(data.classes, config.prompts, external_sources)
            validation = pretraining_validation(config, untrained, prompts, data.classes)
        job = _job(config, data.shards, untrained, run.storage, validation)
        trained = run.train(job, f"{config.model or config.init} by {config.objective}")
        clip = restore_clip(untrained, trained.weights)
        write_open_clip_dir(clip, run_dir / MODEL, _card(config, data, ModelScores()))
        after = AfterTraining()
        scores = (
            after.attempt(SCORING, lambda: _score(config, clip, data.classes, external_sources, run_dir))
            or ModelScores()
        )
        run.release_ray()
        card = _card(config, data, scores)
        after.attempt("model card", lambda: write_card(clip, run_dir / MODEL, card))
        after.attempt("curves", lambda: draw_curves(trained.history, run_dir))
        stages = {"steps": trained.step, "parameters": {"model": clip.parameters}}
        summary = run.finish(
            trained,
            after,
            metrics=scores.metrics,
            intervals=scores.intervals,
            stages=stages,
            model=Path(str(config.model or config.init)).stem,
        )
    show_skipped(trained, summary.counts.attempted)
    if scores.metrics:
        top1, top5 = scores.text("zeroshot_top1"), scores.text("zeroshot_top5")
        print(f"zero-shot top-1 {top1}, top-5 {top5}; chance {percent(1 / len(data.classes))}")
    print(f"{run_dir}: model/  plots/  report.html  summary.json")
    return summary


def plan_pretraining(config: PretrainConfig, data: PretrainData) -> Summary:
    """Print what a pre-training would take, by a few steps on this machine; see `show_plan`.

    Args:
        data: as returned by load_data.
    """
    untrained = _untrained_model(config, data)
    given, config = config, sized(config, data.shards)
    show_chosen(given, config, data.shards)
    show_sources(config, data.shards)
    storage = Storage(checkpoints="", keep_checkpoints=1, resumes=False)
    job = _job(replace(config, workers=here(config.workers)), data.shards, untrained, storage, None)
    return show_plan("pretrain", config, job)


def _card(config: PretrainConfig, data: PretrainData, scores: ModelScores) -> Card:
    origin = {"model": config.model, "init": config.init, "objective": config.objective}
    return Card(
        facts={name: value for name, value in origin.items() if value} | {"data": " + ".join(config.data)},
        metrics=scores.metrics,
        intervals=scores.intervals,
        classes=tuple(entry.name for entry in data.classes),
        templates=resolve_templates(config.prompts.templates),
    )


def _external_sources(
    config: PretrainConfig, classes: list[ClassEntry], run_dir: Path
) -> dict[str, ContextSource]:
    """Return what the prompts of the classes need more than the class list; nothing if no image is scored."""
    if validated_on(config, classes) is None:
        return {}
    cache, allow_missing = run_dir.parent / "anchors", config.stream.allow_missing_shards
    return context_sources(classes, config.prompts, config.data, cache, allow_missing=allow_missing)


def _job(
    config: PretrainConfig,
    shards: list[Shard],
    clip: LoadedClip,
    storage: Storage,
    validation: ValidationBuilder | None,
) -> TrainingJob:
    samples = sum(shard.samples for shard in shards)
    batch_size = config.stream.batch_size
    assert batch_size is not None
    return TrainingJob(
        build_method=PretrainingBuilder(
            share(clip, config.workers),
            config.augmentation.chosen(),
            config.objective,
            config.psd,
            config.seed,
            config.optim.frozen_layers,
            locked_towers(config),
        ),
        shards=shards,
        columns=columns_of(config),
        image_size=clip.image_size,
        batch_size=batch_size,
        total_steps=total_steps(config.optim, samples, batch_size),
        seed=config.seed,
        threads=config.workers.threads_per_worker,
        stream=config.stream,
        augmentation=config.augmentation.chosen(),
        captions=config.captions,
        optim=config.optim,
        cadence=config.cadence,
        storage=storage,
        build_validation=validation,
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
    config: PretrainConfig,
    clip: LoadedClip,
    classes: list[ClassEntry],
    external_sources: dict[str, ContextSource],
    run_dir: Path,
) -> ModelScores:
    if config.scoring.eval_data is None:
        return ModelScores()
    cache, allow_missing = run_dir.parent / "anchors", config.stream.allow_missing_shards
    anchors = class_anchors(classes, config.prompts, external_sources, clip, config.workers, cache)
    scoring = config.scoring
    data = ScoredData(
        config.scoring.eval_data, scoring.label_column, classes, scoring.scoring_batch, allow_missing
    )
    found = score_zeroshot(clip, anchors, data, config.workers)
    write_scores(run_dir, found.scores)
    number = plural(len(found.scores), "image")
    print_stage("scored", f"{number}, {plural(len(classes), 'class')}", "zero-shot")
    return found.model_scores()
