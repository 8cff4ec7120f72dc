"""What `benchmarks/gpu.py` measures: its parts, each of which runs in a process of its own."""

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import one_process
import psutil
import torch
import torch.nn.functional as F
from support.cached_distillation import (
    EMBED_DIM,
    STUDENT,
    VIEWS,
    distillation,
    random_batch,
    write_classes,
    write_teacher,
)
from support.decode_pool import decode_pool
from support.gpu_bench import CPUS, Bench
from support.made_shards import photo_shards
from support.pipelines import rates_of, run_pipeline
from support.random_cache import write_random_cache
from support.timed_parts import Report

from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.session import workers_session
from beamclip.data.batch import Batch
from beamclip.data.bundles import RowReader, read_rows_here
from beamclip.data.cache import is_cache, read_manifest
from beamclip.data.config import Augmentation, CaptionConfig, StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.rows import read_rows
from beamclip.data.shards import Columns
from beamclip.data.starts import read_starts
from beamclip.data.transforms import augment
from beamclip.data.worker_stream import WorkerShare, pinned, prefetched, training_batches, worker_rows
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.json_lines import read_json_lines
from beamclip.losses.csm import csm_loss
from beamclip.models.clip import load_clip, new_clip
from beamclip.models.teacher import ImageTeacher
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.loop import Request, Training, batch_to_device, on_gpu, run_loop
from beamclip.training.process import prepare_process

COMMAND_SECONDS = 110.0
"""After which a public command is given up, so that other parts get their time."""
TAUS = {"tau_student": 0.05, "tau_teacher": 0.02}


def make_inputs(report: Report, bench: Bench) -> None:
    """Make photos, a teacher, its cache and a class list."""
    photo_shards(bench.sizes.photos, bench.folder)
    report.say("photos made")
    write_teacher(bench.sizes.side, bench.teacher)
    write_random_cache(bench.shards, load_clip(str(bench.teacher)), VIEWS, bench.cache, bench.sizes.processes)
    write_classes(bench.folder / "classes.txt")
    free = shutil.disk_usage(bench.folder).free / 2**30
    report.figure("inputs", f"{bench.folder}, {free:.0f} GiB left there")


def measure_training(report: Report, bench: Bench) -> None:
    """Measure ceilings, then each way to read, alone and under the same student."""
    prepare_process(bench.cpu_threads, seed=0)
    batch = batch_to_device(random_batch(bench.sizes.batch, bench.sizes.side), torch.device(bench.device))
    _ceiling(report, bench, "ceiling, not compiled", _training(bench, compile=False), batch)
    training = _training(bench, compile=True)
    _ceiling(report, bench, "ceiling", training, batch)
    report.attempt("profile", 20, partial(_profile, report, bench, training, batch))
    ways: list[tuple[str, int, Callable[[], Any]]] = [
        ("pool", 1, partial(decode_pool, bench.sizes.processes, bench.folder)),
        ("Ray Data", 1, _ray),
        (f"{bench.sizes.threads[0]} threads", bench.sizes.threads[0], _here),
        *((f"{threads} threads", threads, _here) for threads in bench.sizes.threads[1:]),
    ]
    for name, threads, way in ways:
        least = 3 * bench.sizes.seconds + 5
        report.attempt(name, least, partial(_stream_and_run, report, bench, training, name, threads, way))


def _training(bench: Bench, *, compile: bool) -> Training:
    method = distillation(bench.teacher).to(bench.device)
    optim = OptimConfig(lr=1e-3, compile=compile and bench.device == "cuda")
    return Training(method, optim, total_steps=10_000, device=torch.device(bench.device), seed=0)


def _ceiling(report: Report, bench: Bench, name: str, training: Training, batch: Batch) -> None:
    """Measure steps on a batch that lies on the device, and how long the host takes to queue one."""
    began = time.perf_counter()
    for _ in range(bench.sizes.warm_up):
        training.advance([batch])
    _wait(bench)
    report.say(f"{name}: ready after {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    for _ in range(bench.sizes.steps):
        training.advance([batch])
    queued = time.perf_counter() - began
    _wait(bench)
    seconds = time.perf_counter() - began
    count = len(batch.weights)
    report.figure(f"{name}, batch {count}, images/s", bench.sizes.steps * count / seconds)
    report.figure(f"{name}, batch {count}, host ms/step", 1e3 * queued / bench.sizes.steps)
    if bench.device == "cuda":
        report.figure(f"{name}, batch {count}, peak GiB", torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def _profile(report: Report, bench: Bench, training: Training, batch: Batch) -> None:
    """Write which kernels take the time of a step."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if bench.device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(3):
            training.advance([batch])
        _wait(bench)
    order = "self_device_time_total" if bench.device == "cuda" else "self_cpu_time_total"
    averages = profile.key_averages()
    text = averages.table(sort_by=order, row_limit=40, max_name_column_width=60)
    (bench.beside / "profile.txt").write_text(text)
    report.say("profile of 3 steps written")


@contextmanager
def _here() -> Iterator[RowReader]:
    yield read_rows_here


@contextmanager
def _ray() -> Iterator[RowReader]:
    with workers_session(WorkersConfig()):
        yield read_rows


def _stream_and_run(
    report: Report, bench: Bench, training: Training, name: str, threads: int, way: Callable[[], Any]
) -> None:
    """Measure a stream alone, then a run on it."""
    sizes = bench.sizes
    by_reader = threads == 1
    with (
        way() as read,
        prefetched(
            _batches(bench, bench.cache, read, threads, by_reader), StreamConfig().prefetch_batches
        ) as ready,
    ):
        report.say(f"{name}: reader is up")
        psutil.cpu_percent()
        speed = _speed(ready, sizes.batch, sizes.window // sizes.batch + 5, sizes.seconds)
        report.figure(f"{name}, loader alone, images/s", speed)
        report.figure(f"{name}, loader alone, CPUs busy", psutil.cpu_percent() * CPUS / 100)
        ceiling = report.figures()[f"ceiling, batch {sizes.batch}, images/s"]
        every = max(1, sizes.steps // 6)
        whole = int(min(speed, ceiling) * sizes.seconds / sizes.batch) // every
        training.total_steps = training.step + max(3, whole) * every
        records = _Records()
        run_loop(training, ready, CadenceConfig(log_every=every, checkpoint_every=10**9), records)
    rate, waited = rates_of(records.kept[1:])
    report.figure(f"{name}, run, images/s", rate)
    report.figure(f"{name}, run, share of time waiting for data", waited)
    report.figure(f"{name}, run / ceiling", rate / ceiling)


def _batches(
    bench: Bench, data: Path, read: RowReader, threads: int, by_reader: bool
) -> Generator[Batch, None, None]:
    """Stream batches as a lone worker does; see training.worker."""
    views = read_manifest(str(data)).views((0,)) if is_cache(str(data)) else None
    shards = [replace(shard, views=views) for shard in list_shards(str(data))]
    mixture = mixture_of(source_counts(shards), (), bench.sizes.window, seed=0, num_workers=1)
    share, on_gpu = WorkerShare(mixture, bench.sizes.batch), bench.device == "cuda"
    widths = views.widths[1:] if views else ()
    decoding = Decoding(bench.sizes.side, Augmentation(), CaptionConfig(), 0, widths, pinned=on_gpu)
    starts = read_starts(shards)
    rows = worker_rows(shards, starts, Columns(), share, 0, read, decoding if by_reader else None)
    batches = training_batches(rows, share, decoding, threads=threads)
    return pinned(batches) if on_gpu else batches


def _speed(batches: Iterator[Batch], size: int, warm_up: int, seconds: float) -> float:
    """Images per second of a stream, measured for so many seconds after some batches."""
    for _ in islice(batches, warm_up):
        pass
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        taken += size
    return taken / (time.perf_counter() - began)


class _Records:
    """Hooks of a run that keep its records."""

    def __init__(self) -> None:
        self.kept: list[dict[str, float]] = []

    def seen(self, step: int, batches: list[Batch]) -> None:
        """Do nothing."""

    def log(self, record: dict[str, float]) -> None:
        """Keep a record."""
        self.kept.append(record)

    def save(self, state: dict[str, Any], skipped: dict[str, int], record: dict[str, float]) -> None:
        """Save nothing."""

    def asked(self, step: int) -> Request:
        """Ask for nothing."""
        return "nothing"


def measure_csm(report: Report, bench: Bench) -> None:
    """Measure the loss over many anchors, forward and backward, all at once and in chunks."""
    prepare_process(bench.cpu_threads, seed=0)
    count, anchors, chunk = bench.sizes.csm
    generator = torch.Generator().manual_seed(0)
    student, teacher, points = (
        F.normalize(torch.randn(rows, EMBED_DIM, generator=generator), dim=-1).to(bench.device)
        for rows in (count, count, anchors)
    )
    student.requires_grad_()
    weights = torch.full((count,), 1 / count, device=bench.device)
    step = report.figures().get(f"ceiling, batch {bench.sizes.batch}, images/s")
    for name, size in (("plain", None), (f"chunks of {chunk}", chunk)):
        body = partial(csm_loss, student, teacher, points, chunk_size=size, weights=weights, **TAUS)
        for _ in range(bench.sizes.warm_up):
            body().backward()
        _wait(bench)
        held = torch.cuda.memory_allocated() if bench.device == "cuda" else 0
        if held:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(bench.sizes.steps):
            body().backward()
        _wait(bench)
        seconds = (time.perf_counter() - began) / bench.sizes.steps
        report.figure(f"CSM {count} x {anchors}, {name}, ms", 1e3 * seconds)
        if held:
            peak = torch.cuda.max_memory_allocated() - held
            report.figure(f"CSM {count} x {anchors}, {name}, MiB", peak / 2**20)
        if step:
            report.figure(f"CSM {count} x {anchors}, {name}, share of a step", seconds * step / count)


def measure_one_process(report: Report, bench: Bench) -> None:
    """Measure what one process takes of what others decode."""
    prepare_process(threads=1, seed=0)
    found = one_process.measure(bench.shards, bench.sizes.one_process)
    report.figure("one process, crops, images/s", found.images_per_second)
    report.figure("one process, crops, CPU us/image", found.cpu_microseconds)
    report.figure("one process, crops, lock us/image at most", found.lock_microseconds)


def measure_command(report: Report, bench: Bench, name: str, options: list[Any]) -> None:
    """Train by the public command."""
    sizes = bench.sizes
    every, run = max(1, sizes.steps // 6), bench.folder / name
    ceiling = report.figures().get(f"ceiling, batch {sizes.batch}, images/s", 4000.0)
    warm_up = -(-sizes.window // (sizes.batch * every)) + 1
    steps = (warm_up + max(2, int(ceiling * sizes.seconds / sizes.batch) // every)) * every
    log = bench.folder / "distill.log"
    before = log.stat().st_size if log.exists() else 0
    try:
        run_pipeline(
            "distill",
            [
                *("--data", bench.cache, "--teacher", bench.teacher, "--student", STUDENT),
                *("--classes", bench.folder / "classes.txt", "--out", run, "--steps", steps),
                *("--batch-size", sizes.batch, "--log-every", every, "--shuffle-window", sizes.window),
                *(*bench.on_gpu, *options),
            ],
            bench.folder,
            timeout=max(1.0, min(COMMAND_SECONDS, report.left - 3)),
        )
    finally:
        shutil.copy(log, bench.beside)
    rate, waited = rates_of(read_json_lines(run / "metrics.jsonl")[warm_up:])
    report.figure(f"{name}, images/s", rate)
    report.figure(f"{name}, share of time waiting for data", waited)
    report.figure(f"{name}, run / ceiling", rate / ceiling)
    report.figure(
        f"{name}, decoded in", "tasks" if b"in tasks of Ray Data" in log.read_bytes()[before:] else "worker"
    )


def measure_distill(report: Report, bench: Bench) -> None:
    """Train by the public command, through Ray."""
    measure_command(report, bench, "distill", [])


def measure_distill_without_ray(report: Report, bench: Bench) -> None:
    """Train by the public command, whose own process decodes."""
    threads = bench.sizes.threads[0]
    options = ["--num-workers", 0, "--decode-threads", threads]
    measure_command(report, bench, f"distill without Ray, {threads} threads", options)


def measure_teacher(report: Report, bench: Bench) -> None:
    """Measure a teacher: on a batch on the device, on crops of a pool, and by the public command."""
    prepare_process(bench.cpu_threads, seed=0)
    sizes = bench.sizes
    clip = new_clip(sizes.teacher, seed=0)
    large = bench.folder / "large-teacher"
    large.mkdir()
    write_open_clip_dir(clip, large)
    report.say("teacher made")
    teacher = ImageTeacher(clip.image_tower, "bf16").to(bench.device)
    pixels = random_batch(sizes.teacher_batch, clip.image_size).pixels.to(bench.device)
    _forward(report, bench, "teacher", teacher, pixels[:64])
    _forward(report, bench, "teacher", teacher, pixels)
    report.attempt("teacher, by command", 50, partial(_embed, report, bench, large))
    if bench.device == "cuda":
        teacher.compile_network()
    _forward(report, bench, "teacher, compiled", teacher, pixels)
    if clip.image_size == sizes.side:
        report.attempt("teacher, pool", 15, partial(_embed_from_pool, report, bench, teacher))


def _forward(report: Report, bench: Bench, name: str, teacher: ImageTeacher, pixels: torch.Tensor) -> None:
    for _ in range(bench.sizes.warm_up):
        teacher.encode_image(pixels)
    _wait(bench)
    began = time.perf_counter()
    passes = max(1, bench.sizes.steps // 3)
    for _ in range(passes):
        teacher.encode_image(pixels)
    _wait(bench)
    rate = passes * len(pixels) / (time.perf_counter() - began)
    report.figure(f"{name}, batch {len(pixels)}, images/s", rate)


def _embed_from_pool(report: Report, bench: Bench, teacher: ImageTeacher) -> None:
    with (
        decode_pool(bench.sizes.processes, bench.folder) as read,
        closing(_batches(bench, bench.shards, read, 1, by_reader=True)) as batches,
    ):
        moved = on_gpu(batches, torch.device(bench.device)) if bench.device == "cuda" else batches
        embedded = (_embedded(teacher, batch) for batch in moved)
        rate = _speed(
            embedded, bench.sizes.batch, bench.sizes.window // bench.sizes.batch, bench.sizes.seconds
        )
    report.figure("teacher, compiled, on crops of the pool, images/s", rate)


def _embedded(teacher: ImageTeacher, batch: Batch) -> Any:
    return teacher.encode_image(augment(batch.pixels, batch.draws, Augmentation())).half().cpu()


def _embed(report: Report, bench: Bench, teacher: Path) -> None:
    part = bench.folder / "part"
    part.mkdir()
    for number in range(bench.sizes.embedded):
        for suffix in (".tar", "_stats.json"):
            shutil.copy(bench.shards / f"{number:05d}{suffix}", part)
    threads = bench.sizes.threads[0]
    run_pipeline(
        "embed",
        [
            *("--data", part, "--teacher", teacher, "--out", bench.folder / "embedded"),
            *("--embed-batch", bench.sizes.teacher_batch, "--decode-threads", threads),
            *("--verify", 0, "--no-captions", *(["--use-gpu"] if bench.on_gpu else [])),
        ],
        bench.folder,
        timeout=max(1.0, min(COMMAND_SECONDS, report.left - 3)),
    )
    summary = json.loads((bench.folder / "embedded" / "summary.json").read_text())
    report.figure(f"embed, {threads} threads, views/s", summary["images_per_second"])


def measure_large_batch(report: Report, bench: Bench) -> None:
    """Measure the ceiling of a larger batch."""
    prepare_process(bench.cpu_threads, seed=0)
    batch = batch_to_device(
        random_batch(bench.sizes.large_batch, bench.sizes.side), torch.device(bench.device)
    )
    _ceiling(report, bench, "ceiling", _training(bench, compile=True), batch)


def _wait(bench: Bench) -> None:
    """Wait until the GPU has done what it was given."""
    if bench.device == "cuda":
        torch.cuda.synchronize()
