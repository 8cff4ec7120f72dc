"""Batches: the samples of each step, what fills them up, resuming, and the count of what is lost."""

import contextlib
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from beamclip.data import bundles
from beamclip.data import rows as data_rows
from beamclip.data.batch import Batch
from beamclip.data.bundles import RowReader, read_rows_here
from beamclip.data.config import Augmentation, CaptionConfig, StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.image_limits import CORRUPT_IMAGE, UNSUPPORTED_FORMAT
from beamclip.data.listing import list_shards
from beamclip.data.mixture import Mixture, source_counts
from beamclip.data.order import Order
from beamclip.data.rows import read_rows
from beamclip.data.shards import BROKEN_SHARD, MISSING_CAPTION, MISSING_IMAGE, Columns, Shard, iterate_rows
from beamclip.data.starts import read_starts
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, load_training_image, sample_uniforms
from beamclip.data.worker_stream import LEAST_HOPELESS, WorkerShare, prefetched, training_batches, worker_rows
from beamclip.errors import InputError

Make = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]

CAPTIONED = Columns(caption=True)
SEED = 3
DECODING = Decoding(8, Augmentation(), CaptionConfig(), SEED)


@pytest.fixture
def many_executions(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new execution of Ray Data every other epoch or so, as large data have it."""
    monkeypatch.setattr(bundles, "ROWS_PER_TASK", 20)
    monkeypatch.setattr(data_rows, "TASKS_PER_EXECUTION", 2)


@pytest.fixture
def damaged_folder(folder: Path, make_samples: Make, write_tar: Write) -> Path:
    """Two more shards, of 7 and 5 samples, with every kind of trouble but one; see DAMAGE."""
    samples = make_samples(3, 7)
    samples[0]["png"] = samples[0]["png"][:40]
    samples[2]["png"] = b"<html></html>"
    samples[3]["txt"] = b""
    del samples[4]["png"]
    write_tar(folder, 3, samples)
    path = write_tar(folder, 4, make_samples(4, 5))
    path.write_bytes(path.read_bytes()[:1500])
    return folder


DAMAGE = {CORRUPT_IMAGE: 1, UNSUPPORTED_FORMAT: 1, MISSING_CAPTION: 1, MISSING_IMAGE: 1, BROKEN_SHARD: 5}


def order_in(folder: Path, seed: int = SEED) -> Order:
    return Order(np.array([s.samples for s in list_shards(str(folder))]), lanes=7, piece=3, seed=seed)


def share_in(
    folder: Path, batch_size: int = 4, rank: int = 0, world_size: int = 1, micro_batch: int | None = None
) -> WorkerShare:
    return WorkerShare(Mixture((order_in(folder),)), batch_size, rank, world_size, micro_batch)


def batches_of(
    folder: Path,
    share: WorkerShare,
    *,
    step: int = 0,
    skipped: dict[str, int] | None = None,
    decoding: Decoding = DECODING,
    threads: int = 2,
    read: RowReader = read_rows_here,
    by_reader: bool = False,
) -> Generator[Batch, None, None]:
    """by_reader: whether it decodes, and not the threads."""
    shards = list_shards(str(folder))
    starts = read_starts(shards)
    decoded = decoding if by_reader else None
    rows = worker_rows(shards, starts, CAPTIONED, share, step * share.batch_size, read, decoded)
    return training_batches(rows, share, decoding, threads=threads, step=step, skipped=skipped)


def take(items: Generator[Any, None, None], count: int) -> list[Any]:
    """The first items; then the source is closed, and with it the execution of Ray Data behind it."""
    try:
        return list(islice(items, count))
    finally:
        items.close()


def passes_of(batches: Generator[Batch, None, None], steps: int) -> list[list[Batch]]:
    """The micro-batches of each of the first steps."""
    found: list[list[Batch]] = [[]]
    with contextlib.closing(batches):
        while len(found) <= steps:
            found[-1].append(next(batches))
            if found[-1][-1].ends_step:
                found.append([])
    return found[:-1]


def steps_of(folder: Path, world_size: int, steps: int, batch_size: int, **options: Any) -> list[list[Any]]:
    """Of each step, (place, epoch, key) of its usable samples, from all workers, by place."""
    found: list[list[Any]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        share = share_in(folder, batch_size, rank, world_size)
        for step, batch in zip(found, take(batches_of(folder, share, **options), steps), strict=True):
            places = batch.numbers[batch.weights > 0].tolist()
            step += zip(places, batch.epochs, batch.keys, strict=True)
    return [sorted(step) for step in found]


def claimed(folder: Path) -> int:
    return sum(shard.samples for shard in list_shards(str(folder)))


def all_keys(folder: Path) -> list[str]:
    shards = list_shards(str(folder))
    return [row["key"] for s in shards for row in iterate_rows(s, CAPTIONED, range(s.samples))]


def same(first: Batch, second: Batch) -> bool:
    tensors = ("pixels", "draws", "weights", "numbers")
    plain = ("captions", "keys", "epochs", "skipped", "global_size")
    return all(getattr(first, name) == getattr(second, name) for name in plain) and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in tensors
    )


@pytest.mark.parametrize("world_size", [2, 3, 5, 7])
def test_each_step_sees_the_same_samples_for_any_number_of_workers(
    damaged_folder: Path, world_size: int
) -> None:
    assert steps_of(damaged_folder, world_size, 20, 11) == steps_of(damaged_folder, 1, 20, 11)


def test_workers_of_neighbouring_lanes_have_full_batches_of_the_same_steps(damaged_folder: Path) -> None:
    mixture = Mixture((replace(order_in(damaged_folder), lanes=8),))
    alone, *workers = (WorkerShare(mixture, 16, rank, size) for rank, size in ((0, 1), (0, 2), (1, 2)))
    assert [share.together for share in (alone, *workers)] == [8, 4, 4]
    parts = [take(batches_of(damaged_folder, share), 12) for share in workers]
    for whole, *halves in zip(take(batches_of(damaged_folder, alone), 12), *parts, strict=True):
        assert [half.numbers.tolist() for half in halves] == [
            [number for number in range(16) if number // 4 % 2 == rank] for rank in (0, 1)
        ]
        assert sorted(chain(*(half.keys for half in halves))) == sorted(whole.keys)


def test_ray_data_gives_the_same_samples(many_executions: None, damaged_folder: Path) -> None:
    expected = steps_of(damaged_folder, 1, 20, 11)
    for world_size in (1, 2):
        assert steps_of(damaged_folder, world_size, 20, 11, read=read_rows) == expected


@pytest.fixture
def two_sources(tmp_path: Path, make_samples: Make, write_tar: Write) -> list[Shard]:
    """Three shards of one source and one of another, whose windows begin and end elsewhere."""
    sizes = ([11, 5, 9], [17])
    for source, of_source in enumerate(sizes):
        (tmp_path / str(source)).mkdir()
        for number, size in enumerate(of_source):
            write_tar(tmp_path / str(source), number, make_samples(10 * source + number, size))
    listed = [list_shards(str(tmp_path / str(source))) for source in range(len(sizes))]
    return [replace(shard, source=source) for source, shards in enumerate(listed) for shard in shards]


@pytest.mark.parametrize("read", [read_rows_here, read_rows])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_samples_of_several_sources_leave_in_the_order_of_the_run(
    many_executions: None, two_sources: list[Shard], world_size: int, read: RowReader
) -> None:
    first, stop = 29, 160
    keys = [[row["key"] for row in iterate_rows(s, CAPTIONED, range(s.samples))] for s in two_sources]
    counts = source_counts(two_sources)
    mixture = Mixture((Order(counts[0], lanes=5, piece=3, seed=1), Order(counts[1], 2, 4, 2)))
    starts = read_starts(two_sources)
    for rank in range(world_size):
        windows = takewhile(lambda each: each.first < stop, mixture.windows_from(first, rank, world_size))
        expected = sorted(
            (number, keys[shard][row], window.epoch)
            for window in windows
            for number, shard, row in zip(window.number, window.shard, window.row, strict=True)
        )
        share = WorkerShare(mixture, 4, rank, world_size)
        rows = worker_rows(two_sources, starts, CAPTIONED, share, first, read)
        found = [(number, row["key"], row["epoch"]) for number, row in take(rows, len(expected) // 2)]
        assert found == expected[: len(found)]


def test_an_epoch_has_each_usable_sample_once(damaged_folder: Path) -> None:
    rows = claimed(damaged_folder)
    steps = steps_of(damaged_folder, 1, 3 * rows, 1)
    for epoch in range(3):
        keys = [key for step in steps for _, number, key in step if number == epoch]
        assert len(keys) == len(set(keys)) == rows - sum(DAMAGE.values())


@pytest.mark.parametrize("name", ["batch_size", "shuffle_window", "decode_threads"])
def test_a_stream_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is 0: give 1 or more"):
        StreamConfig(**{name: 0})


def test_batches_hold_what_the_shards_hold(folder: Path) -> None:
    decoding = replace(DECODING, image_size=10)
    for batch in take(batches_of(folder, share_in(folder, 5), decoding=decoding), 12):
        assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (5, 3, 10, 10))
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        assert (batch.draws.dtype, batch.draws.shape) == (torch.float32, (5, AUGMENT_DRAWS))
        assert batch.captions == [f"caption {key}" for key in batch.keys]
        assert (batch.weights.tolist(), batch.numbers.tolist()) == ([1.0] * 5, list(range(5)))
        # Each image has one colour: that of its shard and number.
        colours = [[int(key[:5]), int(key[5:]), 128] for key in batch.keys]
        assert batch.pixels[:, :, 5, 5].tolist() == colours


def test_a_batch_may_be_larger_than_an_epoch(folder: Path) -> None:
    batch = take(batches_of(folder, share_in(folder, 60)), 1)[0]
    assert set(Counter(batch.keys).values()) == {2, 3}
    assert Counter(batch.epochs) == {0: 23, 1: 23, 2: 14}


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, None), (1, 4), (3, None), (3, 2), (3, 1)])
def test_what_cannot_be_used_and_what_fills_up_has_no_weight(
    damaged_folder: Path, world_size: int, micro_batch: int | None
) -> None:
    shares = [share_in(damaged_folder, 11, rank, world_size, micro_batch) for rank in range(world_size)]
    for steps in zip(*(passes_of(batches_of(damaged_folder, share), 12) for share in shares), strict=True):
        # All workers take part in each exchange of gradients, so they have equally many passes.
        assert len({len(passes) for passes in steps}) == 1
        parts = list(chain(*steps))
        assert len({len(batch.weights) for batch in parts}) == 1
        assert micro_batch is None or len(parts[0].weights) <= micro_batch
        numbers = torch.cat([batch.numbers for batch in parts])
        assert sorted(numbers[numbers < 11].tolist()) == list(range(11))
        for batch in parts:
            assert batch.global_size == 11
            assert int(batch.weights.sum()) == len(batch.keys)
            assert batch.weights[batch.numbers == 11].sum() == 0
            # Batch norms see every row, so none is empty where there is an image to repeat.
            shown = {tuple(pixel) for pixel in batch.pixels[:, :, 4, 4].tolist()}
            assert not batch.keys or len(shown) == len(set(batch.keys))


def test_a_batch_without_a_usable_sample_is_blank(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    write_tar(tmp_path, 0, make_samples(0, 8)).write_bytes(b"")
    decoding = replace(DECODING, embedding_bytes=(6, 10))
    batch = take(batches_of(tmp_path, share_in(tmp_path, 3), decoding=decoding), 1)[0]
    assert (batch.weights.tolist(), batch.keys, batch.captions) == ([0, 0, 0], [], [""] * 3)
    assert [tuple(each.shape) for each in batch.embeddings] == [(3, 3), (3, 5)]
    assert {line for _, line in batch.lost} != set()


def test_a_change_reaches_every_tensor_of_a_batch(folder: Path) -> None:
    batch = take(batches_of(folder, share_in(folder)), 1)[0]
    batch = replace(batch, embeddings=(torch.ones(4, 2), torch.ones(4, 3)))
    changed = batch.with_tensors(lambda tensor: tensor + 1)
    held = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(batch.tensors()) == len(held) + 2
    assert all(map(torch.equal, changed.tensors(), (tensor + 1 for tensor in batch.tensors())))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_losses_are_counted_once_by_reason_however_many_epochs_pass(
    damaged_folder: Path, world_size: int
) -> None:
    last = [
        take(batches_of(damaged_folder, share_in(damaged_folder, 6, rank, world_size)), 30)[-1]
        for rank in range(world_size)
    ]
    assert max(epoch for batch in last for epoch in batch.epochs) > 2
    assert sum((Counter(batch.skipped) for batch in last), Counter()) == DAMAGE


def test_resuming_goes_on_exactly_where_the_batch_left_off(
    many_executions: None, damaged_folder: Path
) -> None:
    share = share_in(damaged_folder, 3)
    undisturbed = take(batches_of(damaged_folder, share, read=read_rows), 28)
    assert max(undisturbed[-1].epochs) >= 2
    for done in (1, 5, 9, 20):
        skipped = undisturbed[done - 1].skipped
        resumed = batches_of(damaged_folder, share, step=done, skipped=skipped, read=read_rows)
        assert all(map(same, undisturbed[done:], take(resumed, 28 - done))), done


@pytest.mark.parametrize("read", [read_rows_here, read_rows])
def test_the_reader_decodes_to_the_same_batches_as_the_threads(
    many_executions: None, damaged_folder: Path, read: RowReader
) -> None:
    share = share_in(damaged_folder, 11, micro_batch=6)
    by_threads = take(batches_of(damaged_folder, share), 24)
    by_reader = take(batches_of(damaged_folder, share, read=read, by_reader=True), 24)
    assert max(by_threads[-1].epochs) > 2
    assert sum((Counter(batch.skipped) for batch in by_reader[-1:]), Counter()) == DAMAGE
    assert all(map(same, by_threads, by_reader))


def test_data_without_a_usable_image_are_refused(
    tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    samples = make_samples(0, 5)
    for sample in samples[:3]:
        sample["png"] = b"no image"
    for sample in samples[3:]:
        sample["txt"] = b""
    write_tar(tmp_path, 0, samples)
    write_tar(tmp_path, 1, make_samples(1, 4)).write_bytes(b"")
    with pytest.raises(InputError, match="samples in a row cannot be used") as error:
        take(batches_of(tmp_path, share_in(tmp_path)), LEAST_HOPELESS)
    for reason, count in {UNSUPPORTED_FORMAT: 3, MISSING_CAPTION: 2, BROKEN_SHARD: 4}.items():
        assert f"{reason} ({count})" in str(error.value)
    assert f"so far: {BROKEN_SHARD} (4)," in str(error.value)  # the most frequent one comes first


def test_a_broken_shard_does_not_end_a_run(tmp_path: Path, make_samples: Make, write_tar: Write) -> None:
    """Half of the samples are lost, of 12; three workers."""
    write_tar(tmp_path, 0, make_samples(0, 6))
    write_tar(tmp_path, 1, make_samples(1, 6)).write_bytes(b"")
    batches = [
        batch for rank in range(3) for batch in take(batches_of(tmp_path, share_in(tmp_path, 6, rank, 3)), 60)
    ]
    assert Counter(key for batch in batches for key in batch.keys) == {f"00000{i:04d}": 30 for i in range(6)}


def augmented(folder: Path, share: WorkerShare, batches: int, **options: Any) -> dict[tuple[int, str], Any]:
    """Pixels and draws by epoch and key."""
    found = {}
    for batch in take(batches_of(folder, share, **options), batches):
        good = batch.weights > 0
        rows = zip(batch.epochs, batch.keys, batch.pixels[good], batch.draws[good], strict=True)
        for epoch, key, pixels, draws in rows:
            found[epoch, key] = (pixels.tolist(), draws.tolist())
    return found


@pytest.fixture
def noisy_folder(tmp_path: Path, make_samples: Make, write_tar: Write) -> Path:
    """Twelve samples whose pixels tell crops apart."""
    samples = make_samples(0, 12)
    generator = np.random.default_rng(0)
    for sample in samples:
        noise = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        sample["png"] = cv2.imencode(".png", noise)[1].tobytes()
    write_tar(tmp_path, 0, samples)
    return tmp_path


def test_augmentation_depends_on_seed_epoch_and_key_only(noisy_folder: Path) -> None:
    reference = augmented(noisy_folder, share_in(noisy_folder, 12), 2)
    assert len(reference) == 24
    for batch_size, threads in ((12, 1), (3, 2), (1, 4)):
        share = share_in(noisy_folder, batch_size)
        assert augmented(noisy_folder, share, 24 // batch_size, threads=threads) == reference
    parts = [augmented(noisy_folder, share_in(noisy_folder, 4, rank, 2), 6) for rank in range(2)]
    assert parts[0].keys().isdisjoint(parts[1])
    assert parts[0] | parts[1] == reference
    other = replace(DECODING, seed=SEED + 1)
    other_seed = augmented(noisy_folder, share_in(noisy_folder, 12), 1, decoding=other)
    for key in all_keys(noisy_folder):
        assert reference[0, key][0] != reference[1, key][0] != other_seed[0, key][0]
        assert reference[0, key][1] != reference[1, key][1] != other_seed[0, key][1]


def test_crop_and_augmentation_take_their_own_shares_of_the_draws(noisy_folder: Path) -> None:
    batch = take(batches_of(noisy_folder, share_in(noisy_folder, 12)), 1)[0]
    (shard,) = list_shards(str(noisy_folder))
    images = {row["key"]: row["image"] for row in iterate_rows(shard, CAPTIONED, range(12))}
    for key, pixels, draws in zip(batch.keys, batch.pixels, batch.draws, strict=True):
        uniforms = sample_uniforms(SEED, 0, [key])[0]
        crop = load_training_image(images[key], uniforms, 8, Augmentation())
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), crop)
        np.testing.assert_array_equal(draws.numpy(), uniforms[CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS])


def test_closing_the_batches_closes_the_rows_behind_them(many_executions: None, folder: Path) -> None:
    shards, share = list_shards(str(folder)), share_in(folder)
    rows = worker_rows(shards, read_starts(shards), CAPTIONED, share, 0)
    with prefetched(training_batches(rows, share, DECODING, threads=2), 2) as batches:
        next(batches)
    with pytest.raises(StopIteration):
        next(rows)
