"""beamclip.data.stream: what a training loop of one's own sees, in which order, and from where it goes on."""

import json
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from beamclip.data import Augmentation, CaptionConfig, ImageBatch, stream
from beamclip.data.bundles import read_rows_here
from beamclip.data.decoding import Decoding
from beamclip.data.listing import list_shards
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Columns
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare, training_batches, worker_rows
from beamclip.errors import InputError

SAMPLES = 23


def keys_of(batches) -> list[list[str]]:
    """Keys of the usable samples of each batch."""
    return [[key for key in batch.keys if key] for batch in batches]


def test_an_epoch_has_each_sample_once_and_the_next_one_begins_in_its_last_batch(folder):
    batches = [*stream(folder, batch_size=6, image_size=8)]
    assert [batch.images.shape for batch in batches] == [(6, 3, 8, 8)] * 4
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    keys = [key for batch in keys_of(batches) for key in batch]
    assert len(set(keys[:SAMPLES])) == SAMPLES
    assert len(keys) == SAMPLES + 1


def test_texts_and_labels_stand_in_the_rows_of_their_samples(folder):
    for batch in stream(folder, batch_size=6, image_size=8, captions=True, label_column="label"):
        assert batch.captions == [f"caption {key}" for key in batch.keys]
        assert batch.labels == [f"class{int(key[-4:]) % 3}" for key in batch.keys]
        # The samples differ in colour: red is the shard, green the number in it.
        colours = batch.images[:, :, 4, 4].tolist()
        assert [colour[:2] for colour in colours] == [[int(key[:5]), int(key[5:])] for key in batch.keys]


def test_batches_are_those_of_a_training(folder):
    shards = list_shards(str(folder))
    share = WorkerShare(mixture_of(source_counts(shards), (), 4096, 7, 1), 6)
    rows = worker_rows(shards, read_starts(shards), Columns(), share, 0, read_rows_here)
    theirs = training_batches(rows, share, Decoding(8, Augmentation(), CaptionConfig(), 7), threads=1)
    ours = stream(folder, batch_size=6, image_size=8, seed=7, steps=5)
    for own, their in zip(ours, islice(theirs, 5), strict=True):
        assert own.keys == their.keys
        assert torch.equal(own.images, their.pixels)
        assert torch.equal(own.draws, their.draws)


def test_a_position_that_went_through_json_goes_on_with_the_next_step(folder):
    whole = keys_of(stream(folder, batch_size=6, image_size=8, epochs=3))
    begun = stream(folder, batch_size=6, image_size=8, epochs=3)
    first = keys_of(islice(begun, 5))
    position = json.loads(json.dumps(begun.position))
    rest = stream(folder, batch_size=6, image_size=8, epochs=3, position=position)
    assert len(rest) == len(whole) - 5
    assert first + keys_of(rest) == whole


def test_a_loop_that_was_left_goes_on_in_the_next_one_and_a_finished_one_is_refused(folder):
    batches = stream(folder, batch_size=6, image_size=8, steps=4)
    for _ in batches:
        break
    assert len(batches) == 3
    assert len([*batches]) == 3
    with pytest.raises(InputError, match="has given its last batch, of step 4"):
        next(iter(batches))


def test_a_loop_that_is_left_leaves_no_thread(folder):
    before = set(threading.enumerate())
    for _ in stream(folder, batch_size=6, image_size=8, epochs=9):
        assert set(threading.enumerate()) - before
        break
    assert set(threading.enumerate()) - before == set()


def test_a_second_loop_beside_one_that_goes_on_is_refused(folder):
    batches = stream(folder, batch_size=6, image_size=8)
    first = iter(batches)
    next(first)
    with pytest.raises(InputError, match=r"is in a loop already\. Make another stream"):
        next(iter(batches))
    assert len([*first]) == 3


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_of_ray_data_read_the_same_and_end_with_the_loop(folder):
    options = {"batch_size": 6, "image_size": 8, "captions": True, "steps": 3}
    here = [*stream(folder, **options)]
    for own, other in zip(here, stream(folder, through_ray=True, **options), strict=True):
        assert own.keys == other.keys
        assert own.captions == other.captions
        assert torch.equal(own.images, other.images)
    before = set(threading.enumerate())
    for _ in stream(folder, through_ray=True, batch_size=6, image_size=8, epochs=9):
        break
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if name.startswith("beamclip")] == []


def test_to_read_through_a_ray_that_is_not_up_is_refused(folder, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(InputError, match=r"through_ray: Ray is not up in this process\. Start it first"):
        stream(folder, batch_size=6, image_size=8, through_ray=True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_the_samples_of_each_step_and_their_mean_is_its_mean(folder, world_size):
    whole = [*stream(folder, batch_size=7, image_size=8, epochs=2)]
    parts = [
        [*stream(folder, batch_size=7, image_size=8, epochs=2, rank=rank, world_size=world_size)]
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        own = [part[step] for part in parts]
        assert sorted(key for each in own for key in each.keys if key) == sorted(batch.keys)
        assert len({len(each.images) for each in own}) == 1
        mean = sum(float((each.weights * _value(each)).sum()) for each in own) / world_size
        assert mean == pytest.approx(float((batch.weights * _value(batch)).sum()), rel=1e-5)
        assert float(batch.weights.sum()) == pytest.approx(1.0)


def _value(batch: ImageBatch) -> torch.Tensor:
    """A number that differs between samples, in place of a loss."""
    return batch.images[:, :2, 4, 4].float() @ torch.tensor([10.0, 1.0])


def test_within_torch_distributed_a_worker_gets_its_own_rows(folder):
    given = keys_of(stream(folder, batch_size=6, image_size=8, rank=1, world_size=3))
    dist.init_process_group("fake", rank=1, world_size=3, store=FakeStore())
    try:
        found = keys_of(stream(folder, batch_size=6, image_size=8))
    finally:
        dist.destroy_process_group()
    assert found == given


def test_before_torch_distributed_is_set_up_a_worker_is_refused_all_the_data(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"one of 2 workers, .*Call init_process_group first"):
        stream(folder, batch_size=6, image_size=8)
    assert len(next(iter(stream(folder, batch_size=6, image_size=8, rank=1, world_size=2))).keys) == 3
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(next(iter(stream(folder, batch_size=6, image_size=8))).keys) == 6


def test_a_sample_that_cannot_be_used_has_weight_0_and_is_counted(tmp_path, make_samples, write_tar, caplog):
    samples = make_samples(0, 12)
    samples[3]["png"] = b"no image"
    write_tar(tmp_path, 0, samples)
    batches = stream(tmp_path, batch_size=4, image_size=8, captions=True)
    seen = Counter[str]()
    for batch in batches:
        lost = [place for place, weight in enumerate(batch.weights.tolist()) if weight == 0]
        assert [batch.keys[place] for place in lost] == [batch.captions[place] for place in lost]
        assert all(batch.keys[place] == "" for place in lost)
        assert set(batch.weights.tolist()) <= {0.0, 0.25}
        seen.update(batch.keys)
    assert seen.pop("") == 1
    assert set(seen.values()) == {1}
    assert batches.skipped == {"unsupported image format": 1}
    assert "sample 000000003: unsupported image format" in caplog.text


def test_augmented_images_follow_from_seed_epoch_and_key_alone(folder):
    augmentation = Augmentation(crop_scale_min=0.5, flip_prob=0.5)
    options = {"batch_size": 8, "image_size": 8, "steps": 2, "augmentation": augmentation}
    whole, part = (stream(folder, **options, **place) for place in ({}, {"rank": 0, "world_size": 2}))
    images = {key: image for batch in whole for key, image in zip(batch.keys, batch.augmented(), strict=True)}
    for batch in part:
        for key, image in zip(batch.keys, batch.to("cpu").augmented(), strict=True):
            assert not key or torch.equal(image, images[key])


def test_several_data_sets_have_their_shares_of_each_batch(tmp_path, make_samples, write_tar):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        write_tar(tmp_path / str(number), number, make_samples(number, 12))
    places = [tmp_path / "0", tmp_path / "1"]
    for batch in stream(places, batch_size=8, image_size=8, steps=4, data_weights=(3, 1)):
        assert sum(key.startswith("00001") for key in batch.keys) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: give 1 or more."),
        ({"batch_size": 99}, "batch_size is 99, and the data have 23 samples. Give 23 or less."),
        ({"epochs": 1, "steps": 1}, "epochs is 1 and steps 1: give one of them."),
        ({"steps": 0}, "steps is 0: give a number above 0."),
        ({"image_size": -1}, "image_size is -1: give a number above 0."),
        ({"image_size": 8.0}, "image_size is 8.0: give a whole number."),
        ({"label_column": "labl"}, "has a label in labl; their fields are key, label. Give one of those,"),
        ({"rank": 1}, "rank is 1 and world_size None: give both, or none."),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size 2."),
        ({"batch_size": 2, "rank": 0, "world_size": 3}, "leaves some of 3 workers without a sample"),
        ({"data_weights": (1, 2)}, "data_weights: 2 weights for 1 data sets."),
        ({"captions": CaptionConfig(caption_columns=("tags",))}, "has a text in tags"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message, folder):
    with pytest.raises(InputError) as caught:
        stream(folder, **{"batch_size": 6, "image_size": 8, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "others"}, "position: is a place in other data (others)"),
        ({"batch_size": 3}, "batch_size is 6, and position is one of a stream with 3. Give the same."),
        ({"seed": 1}, "position: is a place in another order, of seed 1. Give the seed,"),
        ({"order_version": 1}, "position: its checkpoints are of another version"),
    ],
)
def test_a_position_that_means_something_else_here_is_refused(changed, message, folder):
    position = stream(folder, batch_size=6, image_size=8).position
    with pytest.raises(InputError) as caught:
        stream(folder, batch_size=6, image_size=8, position=position | changed)
    assert message in str(caught.value)


def test_a_position_beyond_the_end_is_refused_and_one_at_it_has_nothing_left(folder):
    long = stream(folder, batch_size=6, image_size=8, steps=5)
    assert len([*long]) == 5
    assert len(stream(folder, batch_size=6, image_size=8, steps=5, position=long.position)) == 0
    with pytest.raises(InputError, match="is at step 5, and this stream ends at step 4"):
        stream(folder, batch_size=6, image_size=8, steps=4, position=long.position)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        stream(tmp_path / "nowhere", batch_size=6, image_size=8)
