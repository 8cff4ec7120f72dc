"""A plan as lines for a terminal of 100 columns."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from support.plan_options import Prices
from support.scale import (
    DECODING,
    GETS,
    GPUS,
    NETWORK,
    PLANNING,
    PROCESSES,
    PUTS,
    SERVERS,
    Plan,
    Stage,
    volumes,
)

LINE, NAME, CELL = 100, 26, 18
"""Columns of a terminal, of a row's name and of a cell."""
MEASURED_SIDE = 224
"""Side of the crops with which decoding and training were measured, pixels."""


def plan_lines(plan: Plan, prices: Prices) -> list[str]:
    """Return everything that there is to say of a plan."""
    parts = [
        textwrap.wrap(_title(plan), LINE),
        _stage_table(plan, prices),
        _way_table(plan, prices),
        _bottlenecks(plan),
        _volume_lines(plan, prices),
        _remarks(plan),
    ]
    return [line for part in parts for line in ("", *part)][1:]


def _title(plan: Plan) -> str:
    job, cluster = plan.job, plan.cluster
    return (
        f"{job.images:,} images, {plan.teacher.name} -> {plan.student.name} at {plan.teacher.image_size} px, "
        f"{job.epochs:g} epochs in {plan.steps:,} steps of {plan.batch_size:,}, "
        f"on {_many(cluster.gpus, 'GPU')} with {_many(cluster.cpus, 'CPU')} in {_many(cluster.nodes, 'node')}"
    )


def _stage_table(plan: Plan, prices: Prices) -> list[str]:
    stages = [plan.ingest, plan.embedding, plan.training_from_cache, plan.training_live]
    on_gpus = stages[1:]
    return [
        _row("", ["ingest", f"embed {_many(plan.job.views, 'view')}", "train from cache", "train live"]),
        _row("images, or views", [_count(stage.passes) for stage in stages]),
        "a second, as allowed by",
        *(
            _row(f"  {resource}", [_limit(stage, resource) for stage in stages])
            for resource in (GPUS, PROCESSES, PLANNING, DECODING, NETWORK, GETS, PUTS, SERVERS)
        ),
        _row("a second, to expect", [f"{stage.per_second:,.0f}" for stage in stages]),
        _row("hours", [_hours(stage.hours) for stage in stages]),
        _row("use of the GPUs", ["", *(f"{stage.reached * stage.share(GPUS):.0%}" for stage in on_gpus)]),
        _row("CPUs to feed a GPU", ["", *(f"{plan.cpus_for_gpus(stage):.1f}" for stage in on_gpus)]),
        _row("read", [_bytes(stage.read_bytes) for stage in stages]),
        _row("requests to the store", [_count(stage.gets + stage.puts) for stage in stages]),
        _row("US dollars", [f"{plan.usd(stage, prices):,.0f}" for stage in stages]),
    ]


def _row(name: str, cells: Sequence[str]) -> str:
    # A mark follows the figure that it belongs to, and moves no other figure.
    padded = (cell if cell.endswith("*") else f"{cell}  " for cell in cells)
    return f"{name:<{NAME}}{''.join(f'{cell:>{CELL}}' for cell in padded)}".rstrip()


def _limit(stage: Stage, resource: str) -> str:
    if resource not in stage.limits:
        return "-"
    return f"{stage.limits[resource]:,.0f}{' *' if resource == stage.bottleneck else ''}"


def _way_table(plan: Plan, prices: Prices) -> list[str]:
    ways = [plan.from_cache, plan.live]
    on_gpus = [sum(stage.hours for stage in way[1:]) for way in ways]
    return [
        _row("", ["all, from a cache", "all, live"]),
        _row("hours", [_hours(sum(stage.hours for stage in way)) for way in ways]),
        _row("GPU hours", [_hours(hours * plan.cluster.gpus) for hours in on_gpus]),
        _row("US dollars", [f"{sum(plan.usd(stage, prices) for stage in way):,.0f}" for way in ways]),
    ]


def _bottlenecks(plan: Plan) -> list[str]:
    lines = []
    for name, way in (("from a cache", plan.from_cache), ("live", plan.live)):
        longest = max(way, key=lambda stage: stage.hours)
        others = {key: limit for key, limit in longest.limits.items() if key != longest.bottleneck}
        without = replace(longest, limits=others)
        lines += textwrap.wrap(
            f"First bottleneck, {name}: {longest.bottleneck}. The {longest.name} takes "
            f"{_hours(longest.hours)} of {_hours(sum(stage.hours for stage in way))} hours; without this "
            f"limit it would take {_hours(without.hours)}, and {without.bottleneck} would be next.",
            LINE,
        )
    return lines


def _volume_lines(plan: Plan, prices: Prices) -> list[str]:
    found, job, reading = volumes(plan), plan.job, plan.reading
    written = _bytes(found.checkpoints * found.checkpoint)
    rows = [
        ("shards", f"{_bytes(found.shards)} in {job.shards:,} files of {job.rows_per_shard:,} samples"),
        ("teacher cache", f"{_bytes(found.cache)} with {_many(job.views, 'view')} of each image"),
        ("both for a month", f"{(found.shards + found.cache) / 1e12 * prices.tb_month_usd:,.0f} US dollars"),
        (
            "reading in training",
            f"{1 / reading.requests:.3g} samples a request, {reading.fetched:.3g} fetched for each",
        ),
        ("Ray's object stores", f"{_bytes(found.crops_in_store)} of crops; --shuffle-window {plan.window}"),
        ("memory of a worker", f"{_bytes(found.list_in_worker)} for the list of shards"),
        ("memory of a node", f"{_bytes(found.starts_on_node)} for where samples begin in tars"),
        ("gradients into a node", f"{_bytes(found.gradients_per_second)}/s, training from a cache"),
        ("checkpoints", f"{found.checkpoints:,} of {_bytes(found.checkpoint)}: {written} written in all"),
        ("MLflow", f"{found.records:,} records, {_bytes(found.mlflow)}"),
    ]
    return [f"{name:<{NAME}}{text}" for name, text in rows]


def _remarks(plan: Plan) -> list[str]:
    scaled = [
        f"{model.name} ({model.gflops:.3g} GFLOPs forward) from {measured}"
        for model, measured in ((plan.teacher, "ViT-B-16"), (plan.student, "resnet18"))
        if model.name != measured
    ]
    texts = [
        "* the least, which limits the stage. Training is expected to reach "
        f"{plan.training_live.reached:.0%} of it, as the command did on one H200.",
        "Measured on one GPU in one node; several are taken to add up, and tasks to run on all nodes alike. "
        "Starts, restarts and failed downloads do not count.",
        "Assumed, and to be replaced by options: networks, what the store answers for one prefix, the "
        "servers, prices (--help). What is measured: --sources.",
    ]
    if scaled:
        texts.insert(1, f"Scaled by FLOPs, not measured: {'; '.join(scaled)}.")
    if plan.teacher.image_size != MEASURED_SIDE:
        texts.append(
            f"Decoding and training were measured at {MEASURED_SIDE} px: decoding takes longer at "
            f"{plan.teacher.image_size} px than it says here."
        )
    return [line for text in texts for line in textwrap.wrap(text, LINE)]


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _count(number: float) -> str:
    return _scaled(number, ((" billion", 1e9), (" million", 1e6), ("", 1)))


def _bytes(size: float) -> str:
    return _scaled(size, ((" PB", 1e15), (" TB", 1e12), (" GB", 1e9), (" MB", 1e6), (" kB", 1e3), (" B", 1)))


def _scaled(number: float, units: Sequence[tuple[str, float]]) -> str:
    unit, size = next((each for each in units if number >= each[1]), units[-1])
    scaled = number / size
    return f"{scaled:,.0f}{unit}" if scaled >= 100 else f"{scaled:.3g}{unit}"
