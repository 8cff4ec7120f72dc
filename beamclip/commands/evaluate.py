"""Score a model on labelled images."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from beamclip.cluster.nodes import SharedPlaces, ask_cluster, some_files
from beamclip.cluster.room import check_resources
from beamclip.cluster.session import workers_session
from beamclip.commands.anchors import class_anchors
from beamclip.commands.class_list import label_ids, required_class_list
from beamclip.commands.console import percent, plural, print_stage, table
from beamclip.commands.contexts import check_contexts, context_sources, refuse_one_class
from beamclip.commands.options import EvaluateConfig
from beamclip.commands.scoring import SCORING_TEMPERATURE
from beamclip.commands.templates import warn_of_misfit, with_templates
from beamclip.config import parameters, write_config
from beamclip.data.listing import list_labelled
from beamclip.errors import InputError
from beamclip.evaluation.encode import Encoded, EncodeSpec, encode_labelled
from beamclip.evaluation.probe import ProbeResult, linear_probe
from beamclip.evaluation.zeroshot import zeroshot_metrics
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.option_texts import check_required
from beamclip.prompts.classes import ClassEntry
from beamclip.runs.folder import CONFIG_FILE, make_run_dir, new_run_dir
from beamclip.summary import Counts, Summary, write_summary
from beamclip.tracking import Tracking


def evaluate(config: EvaluateConfig) -> Summary:
    """Run the given tasks; write, log and print their scores.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
    """
    began = time.perf_counter()
    model, address = _checked(config)
    run_dir = new_run_dir(config.out, "evaluate")
    listed = required_class_list(config.classes, address, config.label_column)
    classes = listed.entries
    refuse_one_class(classes)
    if "zeroshot" in config.tasks:
        check_contexts(classes, config.prompts, [address], allow_missing=config.allow_missing_shards)
    clip = load_clip(model)
    if "zeroshot" in config.tasks:
        config = replace(config, prompts=with_templates(config.prompts, clip, listed.templates))
    make_run_dir(run_dir)
    write_config(config, run_dir / CONFIG_FILE)
    with (
        workers_session(config.workers),
        Tracking.start(
            config.tracking, run_dir=run_dir, params=parameters(config), tags={"command": "evaluate"}
        ) as tracking,
    ):
        check_resources(config.workers)
        encoding = time.perf_counter()
        encoded = _encode(config, clip, classes, address)
        seconds = time.perf_counter() - encoding
        print_stage(
            "images",
            f"{plural(len(encoded.labels), 'image')}, {plural(len(classes), 'class')}",
            f"{len(encoded.labels) / seconds:,.0f} img/s",
        )
        metrics, stages = _run_tasks(config, clip, classes, encoded, run_dir)
        lost = sum(encoded.skipped.values())
        summary = Summary(
            command="evaluate",
            status="finished",
            wall_seconds=time.perf_counter() - began,
            images=len(encoded.labels),
            images_per_second=len(encoded.labels) / seconds,
            metrics=metrics,
            counts=Counts(len(encoded.labels) + lost, len(encoded.labels), skipped=encoded.skipped),
            mlflow_run_id=tracking.run_id,
            stages=stages,
        )
        write_summary(run_dir, summary)
        tracking.log([{"step": 0, **metrics}])
        tracking.artifact(run_dir / "summary.json")
    for reason, number in sorted(encoded.skipped.items()):
        print_stage("skipped", f"{number:,} {reason}")
    table([["metric", "value"], *([name, percent(value)] for name, value in metrics.items())])
    print(f"{run_dir}: summary.json")
    return summary


def _checked(config: EvaluateConfig) -> tuple[str, str]:
    """Check what can be checked before the model is loaded; return model and data."""
    check_required(config)
    if not config.tasks:
        raise InputError("--tasks is empty. Give zeroshot, probe or both.")
    if "probe" in config.tasks and config.train_data is None:
        raise InputError("--tasks probe needs --train-data: labelled images to fit the probe on.")
    read: list[tuple[str, str]] = []
    train_data = config.train_data if "probe" in config.tasks else None
    for option, address in (("--data", config.data), ("--train-data", train_data)):
        if address is not None:
            shards = list_labelled(address, allow_missing=config.allow_missing_shards)
            read += some_files(option, [shard.path for shard in shards])
    ask_cluster(SharedPlaces(tuple(read)))
    return str(config.model), str(config.data)


def _encode(config: EvaluateConfig, clip: LoadedClip, classes: list[ClassEntry], address: str) -> Encoded:
    spec = EncodeSpec(
        embeddings="zeroshot" in config.tasks,
        features="probe" in config.tasks,
        batch_size=config.scoring_batch,
        precision=config.scoring_precision,
    )
    ids = label_ids(classes, address, config.label_column)
    return encode_labelled(
        clip,
        address,
        ids,
        config.label_column,
        spec,
        config.workers,
        allow_missing=config.allow_missing_shards,
    )


def _run_tasks(
    config: EvaluateConfig, clip: LoadedClip, classes: list[ClassEntry], encoded: Encoded, run_dir: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    metrics: dict[str, float] = {}
    stages: dict[str, Any] = {}
    if "zeroshot" in config.tasks:
        cache = run_dir.parent / "anchors"
        external_sources = context_sources(
            classes, config.prompts, [str(config.data)], cache, allow_missing=config.allow_missing_shards
        )
        warn_of_misfit(config.prompts, classes, clip, lambda: encoded.embeddings, config.workers, cache)
        anchors = class_anchors(classes, config.prompts, external_sources, clip, config.workers, cache)
        metrics |= zeroshot_metrics(
            encoded.embeddings, encoded.labels, anchors, len(classes), temperature=SCORING_TEMPERATURE
        )
    if "probe" in config.tasks:
        assert config.train_data is not None, "_checked() refuses a probe without it"
        train = _encode(config, clip, classes, config.train_data)
        result = linear_probe(train.features, train.labels, encoded.features, encoded.labels)
        metrics |= {"probe_top1": result.top1, "probe_top5": result.top5}
        stages["probe"] = _probe_facts(result)
        print_stage(
            "probe",
            f"fitted on {plural(result.train_images, 'image')} of {plural(result.classes, 'class')}",
            f"C {result.inverse_regularisation:g}",
        )
        for note in result.notes:
            print_stage("note", note)
    return metrics, stages


def _probe_facts(result: ProbeResult) -> dict[str, Any]:
    return {
        "inverse_regularisation": result.inverse_regularisation,
        "train_images": result.train_images,
        "test_images": result.test_images,
        "classes": result.classes,
        "notes": list(result.notes),
    }
