"""Plans on paper: arithmetic against hand calculations, constants against sources, counts against code."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from beamclip.data import shards as shards_module
from beamclip.data.bundles import bundles_of, read_bundle
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.parquet_rows import _TAIL_BYTES, _kept_footer
from beamclip.data.shards import Columns
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONSTANTS = {
    "teacher_images_per_second": 1000.0,
    "compiled_teacher_images_per_second": 1000.0,
    "embed_images_per_second": 500.0,
    "student_images_per_second": 2000.0,
    "host_ms_per_step": 10.0,
    "worker_images_per_second": 900.0,
    "decode_images_per_second": 800.0,
    "command_images_per_second": 600.0,
    "downloaded_bytes": 100_000.0,
    "ingest_cpu_ms": 10.0,
    "tar_sample_bytes": 20_000.0,
    "files_per_shard": 4.0,
    "cache_row_bytes": 10_000.0,
    "footer_bytes_per_row": 50.0,
    "listed_shard_bytes": 100.0,
    "metric_bytes": 30.0,
    "planning_ns_per_sample": 50_000.0,
    "system_metrics": 5.0,
    "measured_teacher_gflops": 10.0,
    "measured_student_gflops": 4.0,
}
"""Round numbers, of which all can be worked out by hand."""


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """The folder of a program is on its path when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def a_plan(**changes: Any) -> Any:
    """4 GPUs on 2 nodes, 1.6 million images, 2 epochs, steps of 400; a teacher and a student twice as large
    as the measured ones."""
    from support.model_costs import ModelCost
    from support.plan_options import Cluster, Job
    from support.reading import Reading
    from support.scale import Plan

    job = Job(images=1_600_000, epochs=2.0, views=2, batch_per_gpu=100, checkpoint_every=250)
    cluster = Cluster(
        gpus=4,
        gpus_per_node=2,
        cpus_per_gpu=8,
        gpu_speed=1.0,
        node_gbit=8.0,
        ingest_cpus=10,
        ingest_gbit_per_cpu=0.8,
        download_seconds=0.5,
        downloads_per_cpu=20,
        store_gets=100.0,
        store_puts=50.0,
    )
    plan = Plan(
        job,
        cluster,
        ModelCost("teacher", 20.0, 10**8, 224, 512),
        ModelCost("student", 8.0, 10**6, 224, 512),
        CONSTANTS,
        Reading(requests=0.1, fetched=1.5, opened=0.08),
        window=4096,
    )
    of_job = {key: changes.pop(key) for key in [*changes] if hasattr(job, key)}
    return replace(plan, job=replace(job, **of_job), cluster=replace(cluster, **changes))


def test_every_constant_is_what_its_source_holds() -> None:
    from support.constants import measured_value, read_constants

    constants = read_constants()
    assert {name: each.value for name, each in constants.items()} == {
        name: measured_value(each) for name, each in constants.items()
    }
    assert all(each.unit and each.hardware and each.date >= "2026-11" for each in constants.values())


def test_constants_are_those_that_the_arithmetic_asks_for() -> None:
    from support.constants import read_constants

    counted = {"measured_teacher_gflops", "measured_student_gflops"}
    assert set(read_constants()) == set(CONSTANTS) - counted


def test_an_ingest_is_limited_by_cpus_network_servers_and_store() -> None:
    limits = a_plan().ingest.limits
    # 10 CPUs of 10 ms an image; 10 x 0.1 GB/s for 100 kB; 200 downloads of half a second; 4 files a shard.
    assert limits == pytest.approx(
        {
            "CPUs": 1000,
            "network of the nodes": 10_000,
            "answers of the servers": 400,
            "writes to the store": 12_500,
        }
    )
    assert a_plan().ingest.bottleneck == "answers of the servers"
    assert a_plan().ingest.hours == pytest.approx(1_600_000 / 400 / 3600)


def test_a_teacher_and_what_stands_beside_it_take_turns() -> None:
    # The teacher costs twice 1 ms, and a process needs 2 ms - 1 ms beside a teacher that was measured.
    stage = a_plan().embedding
    assert stage.passes == 3_200_000
    assert stage.limits["GPUs"] == pytest.approx(4 / 0.003)
    # 4 x 8 CPUs, where 16 make 800 crops a second.
    assert stage.limits["CPUs"] == pytest.approx(32 * 50)
    # 4 requests of 256 rows for a shard of 1,000, and its two files, over two views.
    assert stage.limits["reads from the store"] == pytest.approx(100 / (4 / 1000 / 2))
    assert stage.limits["writes to the store"] == pytest.approx(50 / (2 / 1000 / 2))
    assert (stage.gets, stage.puts) == pytest.approx((6400, 3200))


def test_a_live_step_is_the_teachers_pass_and_the_students_step() -> None:
    # 2 ms for the teacher; a student of twice the FLOPs takes twice 0.5 ms.
    live, cached = a_plan().training_live, a_plan().training_from_cache
    assert live.limits["GPUs"] == pytest.approx(4 / 0.003)
    assert cached.limits["GPUs"] == pytest.approx(4 / 0.001)
    assert cached.limits["workers' processes"] == 3600
    # Each of the workers spends 50 microseconds on each sample of the run.
    assert cached.limits["planning in each worker"] == pytest.approx(20_000)
    # Half of the crops, 3 x 224 x 224 bytes, are made on the other node; 20 kB a sample, half of them twice;
    # gradients of 1.5 x 4 MB reach each of 2 nodes in a step of 400.
    read = 1.5 * 20_000 + 150_528 / 2 + 6e6 * 2 / 400
    assert live.limits["network of the nodes"] == pytest.approx(2 * 1e9 / read)
    assert live.limits["reads from the store"] == pytest.approx(1000)
    assert live.hours == pytest.approx(3_200_000 / (0.75 * 1000) / 3600)


def test_small_steps_are_as_slow_as_their_host() -> None:
    # 5 images would take the GPU 5 ms, and the host takes 10.
    assert a_plan(batch_per_gpu=5).training_from_cache.limits["GPUs"] == pytest.approx(4 * 5 / 0.010)


def test_a_faster_gpu_helps_as_far_as_its_host_lets_it() -> None:
    assert a_plan(gpu_speed=2.0).training_from_cache.limits["GPUs"] == pytest.approx(4 / 0.0005)
    assert a_plan(gpu_speed=1e6).training_from_cache.limits["GPUs"] == pytest.approx(4 * 100 / 0.010)


def test_of_many_shards_a_cache_asks_for_footers_of_few_it_does_not() -> None:
    few, many = a_plan(images=64_000).training_from_cache, a_plan(images=640_000).training_from_cache
    assert few.limits["reads from the store"] == pytest.approx(100 / 0.1)
    # 64 footers of 640 are at hand.
    assert many.limits["reads from the store"] == pytest.approx(100 / (0.1 + 0.9 * 0.08))
    # A row: itself, and for 2 views 16 numbers of 4 bytes and 512 of 2. A footer comes with 64 KiB.
    row = 10_000 + 2 * (64 + 1024)
    assert many.read_bytes / many.passes == pytest.approx(1.5 * row + 0.9 * 0.08 * 65_536)


def test_one_node_moves_no_crops_and_no_gradients() -> None:
    plan = a_plan(gpus_per_node=4)
    assert plan.training_live.limits["network of the nodes"] == pytest.approx(1e9 / (1.5 * 20_000))


def test_a_ring_of_gpus_receives_the_bytes_that_a_walk_along_it_counts() -> None:
    gpus, parameters = 4, 10**6
    # Each GPU passes one part of `gpus` on, in each round of two walks: one to add up, one to hand out.
    received = [0.0] * gpus
    for _walk in range(2):
        for _round in range(gpus - 1):
            for gpu in range(gpus):
                received[(gpu + 1) % gpus] += 4 * parameters / gpus
    assert a_plan().gradient_bytes == pytest.approx(received[0])


def test_the_narrowest_limit_is_named_and_its_share_is_whole() -> None:
    stage = a_plan().training_live
    assert stage.bottleneck == "reads from the store"
    assert stage.share("reads from the store") == 1
    assert stage.share("GPUs") == pytest.approx(1000 / (4 / 0.003))


def test_costs_are_machines_and_requests() -> None:
    from support.plan_options import Prices

    plan, prices = a_plan(), Prices(3.0, 0.5, 20.0, 1.0, 10.0)
    live, ingest = plan.training_live, plan.ingest
    assert plan.usd(live, prices) == pytest.approx(live.hours * 4 * 3.0 + 0.32)
    assert plan.usd(ingest, prices) == pytest.approx(ingest.hours * 10 * 0.5 + 6400 / 1e6 * 10)


def test_volumes_by_hand() -> None:
    from support.scale import volumes

    plan = a_plan()
    found = volumes(plan)
    assert (plan.steps, found.checkpoints, found.records) == (8000, 32, 800)
    assert found.shards == 1_600_000 * 20_000
    assert found.cache == 1_600_000 * (10_000 + 2 * (64 + 1024))
    assert found.list_in_worker == 160_000
    # 1,000 rows are 63 pieces, with 64 places and an end, 8 bytes each.
    assert found.starts_on_node == 1600 * 65 * 8
    seconds = plan.training_from_cache.hours * 3600
    assert found.mlflow == pytest.approx((800 * 10 + seconds / 10 * 5) * 30)


def test_a_checkpoint_holds_three_numbers_for_a_weight() -> None:
    from support.scale import FLOAT, STATES

    network = torch.nn.Linear(300, 200)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    held = [*network.state_dict().values()]
    held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert sum(tensor.nbytes for tensor in held) == STATES * FLOAT * weights


def test_what_the_code_fixes_is_what_the_plan_counts_with() -> None:
    from support.driver_parts import METRICS
    from support.scale import FOOTERS_KEPT, METRICS_PER_RECORD, TAIL_BYTES

    assert _kept_footer.cache_parameters()["maxsize"] == FOOTERS_KEPT
    assert _TAIL_BYTES == TAIL_BYTES
    assert len(METRICS) == METRICS_PER_RECORD


def measured_plan(teacher: str, **cluster: Any) -> Any:
    """A plan with the measured constants for the machine that they were measured on: one GPU, 16 CPUs."""
    from support.constants import read_constants, values_of
    from support.model_costs import student_cost, teacher_cost

    reference, student = teacher_cost("ViT-B-16"), student_cost("resnet18", 224, 512)
    constants = {
        **values_of(read_constants()),
        "measured_teacher_gflops": reference.gflops,
        "measured_student_gflops": student.gflops,
    }
    there = {"gpus": 1, "gpus_per_node": 8, "cpus_per_gpu": 16, "node_gbit": 1000.0, "store_gets": 1e9}
    plan = a_plan(batch_per_gpu=256, **(there | cluster))
    return replace(plan, teacher=teacher_cost(teacher), student=student, constants=constants)


def test_a_plan_for_the_measured_machine_gives_the_measured_speeds() -> None:
    plan = measured_plan("ViT-B-16")
    assert plan.training_from_cache.limits["GPUs"] == pytest.approx(14_657, rel=1e-3)
    assert plan.training_from_cache.per_second == pytest.approx(5745, rel=1e-3)
    assert plan.embedding.limits["GPUs"] == pytest.approx(4691, rel=0.01)


def test_a_teacher_of_more_flops_is_slower_by_them() -> None:
    small, large = measured_plan("ViT-B-16"), measured_plan("ViT-L-14")
    ratio = vit_gflops(24, 1024, 14, 768) / vit_gflops(12, 768, 16, 512)
    assert large.teacher_seconds / small.teacher_seconds == pytest.approx(ratio, rel=1e-3)


def vit_gflops(layers: int, width: int, patch: int, embed_dim: int, side: int = 224) -> float:
    """A vision transformer by the textbook: projections, two products of attention, an MLP of 4 x width."""
    patches = (side // patch) ** 2
    tokens = patches + 1
    a_layer = 2 * tokens * width * (3 * width + width + 8 * width) + 4 * tokens**2 * width
    return (layers * a_layer + 2 * patches * 3 * patch**2 * width + 2 * width * embed_dim) / 1e9


@pytest.mark.parametrize(
    ("name", "shape"), [("ViT-B-16", (12, 768, 16, 512)), ("ViT-L-14", (24, 1024, 14, 768))]
)
def test_the_flops_of_a_transformer_are_those_of_the_textbook(name: str, shape: tuple[int, ...]) -> None:
    from support.model_costs import teacher_cost

    assert teacher_cost(f"open_clip:{name}/openai").gflops == pytest.approx(vit_gflops(*shape), rel=1e-3)


def test_the_flops_of_a_resnet_are_those_of_its_paper() -> None:
    from support.model_costs import student_cost

    # arXiv 1512.03385, table 1: 1.8e9 multiplications with additions.
    cost = student_cost("resnet18", 224, 1000)
    assert cost.gflops / 2 == pytest.approx(1.8, rel=0.02)
    assert cost.parameters == 11_689_512


@pytest.mark.parametrize(("rows", "workers"), [(32, 1), (40, 1), (40, 2), (40, 3)])
def test_planned_requests_are_those_that_reading_makes(
    rows: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.made_shards import Sample, write_shards
    from support.reading import planned_reading

    shards, window = 64, 16 * 8 * workers
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shards([Sample("jpg", b"x" * 50, "text")] * (shards * rows), rows, folder)
    listed = list_shards(str(folder))
    requests: list[tuple[str, int, int]] = []
    monkeypatch.setattr(shards_module, "read_part", lambda *asked: requests.append(asked) or part(*asked))
    part = sys.modules["beamclip.data.shard_file"].read_part
    mixture = mixture_of(source_counts(listed), (), window, 0, workers)
    starts, samples = read_starts(listed), 0
    for each in WorkerShare(mixture, 64 * workers, 0, workers).windows_from(0):
        for bundle in bundles_of(each, listed, starts):
            samples += sum(len(table) for table in read_bundle(bundle, Columns()))
        if samples * workers >= shards * rows:
            break
    planned = planned_reading(shards, rows, window, workers, 64 * workers)
    assert len(requests) / samples == pytest.approx(planned.requests, rel=0.15)


def test_pieces_that_fill_their_shards_are_read_once() -> None:
    from support.reading import planned_reading

    for workers in (1, 4):
        found = planned_reading(1000, 160, 4096, workers, 1024)
        assert (found.requests, found.fetched) == pytest.approx((1 / 16, 1), rel=0.02)


def test_a_worker_of_many_shares_few_pieces_with_others() -> None:
    from support.reading import planned_reading

    # Eight neighbouring lanes of almost a piece each lie in nine pieces. One by one, they lie in two each.
    found = planned_reading(6000, 397, 128 * 64, 64, 256 * 64)
    assert (found.requests, found.fetched) == pytest.approx((9 / 127, 9 / 8), rel=0.02)
    apart = planned_reading(6000, 397, 128 * 64, 64, 255 * 65)
    assert (apart.requests, apart.fetched) == pytest.approx((2 / 16, 2), rel=0.05)


def test_one_worker_reads_as_the_store_has_counted() -> None:
    import json

    from support.constants import FOLDER
    from support.reading import planned_reading

    costs = json.loads((FOLDER / "object_store.json").read_text())["costs"]
    counted = costs["read 8,192 samples, and the window after them"]["requests"] / 8192
    # The count has what was read ahead, too.
    assert planned_reading(1000, 32, 4096, 1, 256).requests <= counted <= 1.15 / 16


def test_a_counted_folder_is_listed_as_a_folder_of_an_ingest() -> None:
    from support.counted_folder import counted_folder

    shards = list_shards(counted_folder(7, 40))
    assert [shard.samples for shard in shards] == [40] * 7
    starts = read_starts(shards)
    # Three pieces each: three places and an end.
    assert starts.ends.tolist() == [4 * (number + 1) for number in range(7)]
    again = list_shards(counted_folder(7, 40))
    assert again == shards


@pytest.mark.slow
def test_the_driver_is_measured_part_by_part() -> None:
    from support.driver_parts import Scale, measure_driver

    heard = []
    found = measure_driver(Scale(shards=200, rows=40, workers=8, records=30), heard.append)
    assert list(found.values()) == heard
    assert all(part.seconds >= 0 and part.peak_mb > 10 for part in heard)
    assert found["records"].value > 0


def test_planning_counts_what_a_worker_does_for_every_sample() -> None:
    from support.driver_parts import Part, Scale, planning_ns

    # 20 windows of 16 x 8 x 1000 samples, drawn twice; 100 steps of 256 x 1000.
    parts = {
        "windows": Part("", 9.0, 0.64, 1.0, "", None),
        "shares": Part("", 9.0, 2.56, 1.0, "", None),
    }
    assert planning_ns(Scale(1, 1, 1000, 1), parts) == pytest.approx(2 * 250 + 100)


def run_program(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    from plan import main

    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "0"), "gpus is 0: give 1 or more."),
        (("--images", "many"), "many is not a whole number"),
        (("--epochs", "0"), "epochs is 0.0: give a number above 0."),
        (("--teacher", "ViT-L14"), "Did you mean ViT-L-14"),
        (("--student", "resnet-18"), "timm has no such model"),
        (("--gpu-hour-usd", "-1"), "gpu_hour_usd is -1.0: give 0 or more."),
        (("--trials", "3"), "unrecognized arguments"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_program(monkeypatch, *arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert message in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--gpus", "1", "--images", "5000", "--epochs", "1"),
        ("--images", "1e12", "--gpus", "200", "--teacher", "ViT-H-14-378", "--student", "convnext_large"),
    ],
)
def test_a_plan_fits_a_terminal_and_names_its_bottlenecks(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_program(monkeypatch, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("First bottleneck") for line in lines) == 2


def test_sources_name_hardware_date_and_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_program(monkeypatch, "--sources")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    assert said.count("docs/benchmarks/") == len(CONSTANTS) - 2
    assert "NVIDIA H200" in said
