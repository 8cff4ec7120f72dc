"""The plan of an epoch, its order, full batches, resuming, and the count of what is lost."""

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from beamclip.data import rows as data_rows
from beamclip.data.config import AugmentConfig, CaptionConfig, StreamConfig
from beamclip.data.image_limits import CORRUPT_IMAGE, UNSUPPORTED_FORMAT
from beamclip.data.order import Order, epoch_part
from beamclip.data.position import DataPosition, Position
from beamclip.data.shards import (
    BROKEN_SHARD,
    MISSING_CAPTION,
    MISSING_IMAGE,
    Columns,
    Row,
    iterate_rows,
    list_shards,
)
from beamclip.data.stream import (
    HOPELESS_EPOCHS,
    Batch,
    numbered,
    prefetched,
    shuffled_rows,
    training_batches,
)
from beamclip.data.transforms import AUGMENT_DRAWS, CROP_DRAWS, load_training_image, sample_uniforms
from beamclip.errors import InputError

Make = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]

CAPTIONED = Columns(caption=True)
SEED = 3


@pytest.fixture
def many_executions(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new execution of Ray Data every other epoch or so, as large data have it."""
    monkeypatch.setattr(data_rows, "ROWS_PER_TASK", 20)
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


def open_rows(folder: Path, rank: int = 0, world_size: int = 1, **options: Any) -> Generator[Row, None, None]:
    settings = {"seed": SEED, "start": Position(), **options}
    order = Order(settings["seed"], world_size, buffer=6, shards=2)
    # Where the others stand does not matter to a rank.
    position = DataPosition(order, (settings["start"],) * world_size)
    return shuffled_rows(list_shards(str(folder)), CAPTIONED, position, rank)


def plain_rows(folder: Path, shuffle: int | None = None) -> Generator[Row, None, None]:
    """Endless rows of all shards without Ray: in their order, or shuffled with a seed."""
    shards = list_shards(str(folder))
    epoch = 0
    while True:
        parts = [iterate_rows(shard, CAPTIONED, range(shard.samples), epoch) for shard in shards]
        rows = [row for part in parts for row in part]
        if shuffle is not None:
            random.Random(f"{shuffle}/{epoch}").shuffle(rows)
        yield from rows
        epoch += 1


def batches_of(rows: Generator[Row, None, None], **options: Any) -> Generator[Batch, None, None]:
    settings = {
        "batch_size": 4, "image_size": 8, "augment": AugmentConfig(), "captions": CaptionConfig(),
        "seed": SEED, "start": Position(), "threads": 2, **options,
    }  # fmt: skip
    return training_batches(rows, **settings)


def take(items: Generator[Any, None, None], count: int) -> list[Any]:
    """The first items; then the source is closed, and with it the execution of Ray Data behind it."""
    try:
        return list(islice(items, count))
    finally:
        items.close()


def rows_of_epochs(rows: Generator[Row, None, None], epochs: int) -> list[list[str]]:
    """Keys in order, by epoch."""
    found: list[list[str]] = [[] for _ in range(epochs)]
    for row in rows:
        if row["epoch"] == epochs:
            rows.close()
            return found
        found[row["epoch"]].append(row["key"])
    raise AssertionError("the stream ended")


def all_keys(folder: Path) -> list[str]:
    return sorted(row["key"] for row in islice(plain_rows(folder), claimed(folder)))


def claimed(folder: Path) -> int:
    return sum(shard.samples for shard in list_shards(str(folder)))


def same(first: Batch, second: Batch) -> bool:
    return (
        (first.keys, first.epochs, first.captions) == (second.keys, second.epochs, second.captions)
        and first.position == second.position
        and torch.equal(first.pixels, second.pixels)
        and torch.equal(first.draws, second.draws)
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_together_stream_each_sample_once_an_epoch(
    many_executions: None, folder: Path, world_size: int
) -> None:
    found = [rows_of_epochs(open_rows(folder, rank, world_size), 4) for rank in range(world_size)]
    for epoch in range(4):
        assert sorted(key for part in found for key in part[epoch]) == all_keys(folder)


def test_the_order_is_the_same_for_a_seed_and_another_for_another_seed_or_epoch(
    many_executions: None, folder: Path
) -> None:
    first, again = (rows_of_epochs(open_rows(folder), 4) for _ in range(2))
    other = rows_of_epochs(open_rows(folder, seed=SEED + 1), 4)
    assert first == again
    orders = {tuple(keys) for keys in [*first, *other]}
    assert len(orders) == 8


@pytest.mark.parametrize("name", ["batch_size", "shuffle_buffer", "shuffle_shards", "decode_threads"])
def test_a_stream_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is 0: give 1 or more"):
        StreamConfig(**{name: 0})


def test_fewer_samples_than_workers_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the data hold 23 samples, too few for 24 workers"):
        next(open_rows(folder, rank=0, world_size=24))


def test_batches_are_full_and_hold_what_the_shards_hold(folder: Path) -> None:
    for batch in take(batches_of(plain_rows(folder), batch_size=5, image_size=10), 12):
        assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (5, 3, 10, 10))
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        assert (batch.draws.dtype, batch.draws.shape) == (torch.float32, (5, AUGMENT_DRAWS))
        assert batch.captions == [f"caption {key}" for key in batch.keys]
        # Each image has one colour: that of its shard and number.
        colours = [[int(key[:5]), int(key[5:]), 128] for key in batch.keys]
        assert batch.pixels[:, :, 5, 5].tolist() == colours


def test_rows_are_numbered_over_ranks_and_micro_batches(folder: Path) -> None:
    ranks = [
        take(numbered(batches_of(plain_rows(folder)), rank=rank, world_size=2, accumulation=3), 6)
        for rank in range(2)
    ]
    for step in (slice(0, 3), slice(3, 6)):
        numbers = [batch.numbers for rank in ranks for batch in rank[step]]
        assert torch.cat(numbers).tolist() == list(range(2 * 3 * 4))
    for batch in (*ranks[0], *ranks[1]):
        assert (batch.global_size, batch.good, batch.weights.tolist()) == (24, 4, [1.0] * 4)


def test_a_change_reaches_every_tensor_of_a_batch(folder: Path) -> None:
    batch = take(batches_of(plain_rows(folder)), 1)[0]
    batch = replace(batch, embeddings=(torch.ones(4, 2), torch.ones(4, 3)))
    changed = batch.with_tensors(lambda tensor: tensor + 1)
    held = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(batch.tensors()) == len(held) + 2
    assert all(map(torch.equal, changed.tensors(), (tensor + 1 for tensor in batch.tensors())))


def test_a_batch_may_be_larger_than_an_epoch(folder: Path) -> None:
    batch = take(batches_of(plain_rows(folder), batch_size=60), 1)[0]
    assert set(Counter(batch.keys).values()) == {2, 3}
    assert batch.position == Position(epoch=2, drawn=60 - 2 * 23)


def test_damaged_samples_are_replaced_so_that_every_batch_is_full(damaged_folder: Path) -> None:
    batches = take(batches_of(plain_rows(damaged_folder), batch_size=7), 10)
    assert {len(batch.keys) for batch in batches} == {7}
    usable = claimed(damaged_folder) - sum(DAMAGE.values())
    assert set(Counter(key for batch in batches for key in batch.keys).values()) <= {2, 3}
    assert len({key for batch in batches for key in batch.keys}) == usable


def test_losses_are_counted_once_by_reason_however_many_epochs_pass(damaged_folder: Path) -> None:
    position = take(batches_of(plain_rows(damaged_folder)), 30)[-1].position
    assert (position.epoch > 2, position.skipped) == (True, DAMAGE)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_delivered_and_lost_samples_of_all_ranks_add_up_to_the_claim(
    many_executions: None, damaged_folder: Path, world_size: int
) -> None:
    delivered, lost = set[str](), Counter[str]()
    for rank in range(world_size):
        rows = watched(open_rows(damaged_folder, rank, world_size), until_epoch=1)
        batches = list(batches_to_end(batches_of(rows, batch_size=1)))
        lost += Counter(batches[-1].position.skipped)
        delivered |= {batch.keys[0] for batch in batches if batch.position.epoch == 0}
    assert lost == DAMAGE
    assert len(delivered) + lost.total() == claimed(damaged_folder)


class StreamEndedError(Exception):
    """Ends an endless stream in a test."""


def watched(rows: Generator[Row, None, None], until_epoch: int) -> Generator[Row, None, None]:
    """Rows up to the first usable ones of an epoch; then an error instead of the next."""
    usable = 0
    for row in rows:
        yield row
        usable += row["epoch"] == until_epoch and row["problem"] is None
        if usable == 4:
            rows.close()
            raise StreamEndedError


def batches_to_end(batches: Generator[Batch, None, None]) -> Iterator[Batch]:
    try:
        yield from batches
    except StreamEndedError:
        return


def test_resuming_goes_on_exactly_where_the_batch_left_off(
    many_executions: None, damaged_folder: Path
) -> None:
    undisturbed = take(batches_of(open_rows(damaged_folder), batch_size=3), 28)
    assert undisturbed[-1].position.epoch >= 2
    for done in (1, 5, 9, 20):
        start = undisturbed[done - 1].position
        resumed = take(
            batches_of(open_rows(damaged_folder, start=start), batch_size=3, start=start), 28 - done
        )
        assert all(same(a, b) for a, b in zip(undisturbed[done:], resumed, strict=True)), done


def test_a_rank_of_several_resumes_at_the_end_of_its_epoch(many_executions: None, folder: Path) -> None:
    """23 samples over two ranks: 11 and 12. Batches of 11 and 12 end with the epoch."""
    for rank, size in ((0, 11), (1, 12)):
        whole = take(batches_of(open_rows(folder, rank, 2), batch_size=size), 3)
        assert [batch.position for batch in whole] == [Position(epoch, size) for epoch in range(3)]
        start = whole[0].position
        resumed = take(batches_of(open_rows(folder, rank, 2, start=start), batch_size=size, start=start), 2)
        assert all(same(a, b) for a, b in zip(whole[1:], resumed, strict=True))


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
    with pytest.raises(
        InputError, match=f"no usable image in {HOPELESS_EPOCHS} passes over the data"
    ) as error:
        next(batches_of(plain_rows(tmp_path)))
    for reason, count in {UNSUPPORTED_FORMAT: 3, MISSING_CAPTION: 2, BROKEN_SHARD: 4}.items():
        assert f"'{reason}': {count}" in str(error.value)


def test_data_without_a_usable_image_are_refused_by_the_whole_stream(
    many_executions: None, tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    for shard in range(2):
        write_tar(tmp_path, shard, make_samples(shard, 12)).write_bytes(b"")
    with pytest.raises(InputError, match="no usable image"):
        next(batches_of(open_rows(tmp_path, 1, 2)))


def test_a_rank_outlives_epochs_whose_rows_are_all_in_a_broken_shard(
    many_executions: None, tmp_path: Path, make_samples: Make, write_tar: Write
) -> None:
    """Two shards, two ranks, one shard empty: each epoch, one of the ranks finds nothing."""
    write_tar(tmp_path, 0, make_samples(0, 6))
    write_tar(tmp_path, 1, make_samples(1, 6)).write_bytes(b"")
    counts, order = np.array([6, 6]), Order(SEED, 2, buffer=6, shards=2)
    droughts = [
        "".join(str(epoch_part(counts, order, epoch, rank).shard[0]) for epoch in range(60))
        for rank in range(2)
    ]
    assert any("111" in drought for drought in droughts)
    for rank in range(2):
        batches = take(batches_of(open_rows(tmp_path, rank, 2), batch_size=6), 20)
        assert {key for batch in batches for key in batch.keys} == {f"00000{i:04d}" for i in range(6)}


def augmented(rows: Generator[Row, None, None], batches: int, **options: Any) -> dict[tuple[int, str], Any]:
    """Pixels and draws by epoch and key; batches must end with the epochs."""
    found = {}
    for batch in take(batches_of(rows, **options), batches):
        for key, pixels, draws in zip(batch.keys, batch.pixels, batch.draws, strict=True):
            found[batch.position.epoch, key] = (pixels.tolist(), draws.tolist())
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
    reference = augmented(plain_rows(noisy_folder), 2, batch_size=12)
    for shuffle, batch_size, threads in ((0, 12, 1), (1, 3, 2), (2, 1, 4)):
        rows = plain_rows(noisy_folder, shuffle)
        assert augmented(rows, 24 // batch_size, batch_size=batch_size, threads=threads) == reference
    first_epoch = [reference[0, key] for key in all_keys(noisy_folder)]
    second_epoch = [reference[1, key] for key in all_keys(noisy_folder)]
    other_seed = augmented(plain_rows(noisy_folder), 1, batch_size=12, seed=SEED + 1)
    for i, key in enumerate(all_keys(noisy_folder)):
        assert first_epoch[i][0] != second_epoch[i][0] != other_seed[0, key][0]
        assert first_epoch[i][1] != second_epoch[i][1] != other_seed[0, key][1]


def test_augmentation_does_not_depend_on_the_rank(many_executions: None, noisy_folder: Path) -> None:
    reference = augmented(plain_rows(noisy_folder), 2, batch_size=12)
    for rank in range(2):
        found = augmented(open_rows(noisy_folder, rank, 2), 6, batch_size=2)
        assert len(found) == 12
        assert found.items() <= reference.items()


def test_crop_and_augmentation_take_their_own_shares_of_the_draws(noisy_folder: Path) -> None:
    batch = take(batches_of(plain_rows(noisy_folder), batch_size=2), 1)[0]
    for row, pixels, draws in zip(plain_rows(noisy_folder), batch.pixels, batch.draws, strict=False):
        uniforms = sample_uniforms(SEED, 0, [row["key"]])[0]
        crop = load_training_image(row["image"], uniforms, 8, AugmentConfig())
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), crop)
        np.testing.assert_array_equal(draws.numpy(), uniforms[CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS])


def test_closing_the_batches_closes_the_rows_behind_them(many_executions: None, folder: Path) -> None:
    rows = open_rows(folder)
    with prefetched(batches_of(rows), 2) as batches:
        next(batches)
    with pytest.raises(StopIteration):
        next(rows)
