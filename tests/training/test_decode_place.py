"""Where a training decodes its images."""

import pytest

from beamclip.errors import InputError
from beamclip.training.decode_place import crop_store_bytes, decode_place

NEEDED = 10 << 30


@pytest.mark.parametrize(
    ("on_gpu", "cpus", "store", "place"),
    [
        (True, 8, NEEDED, "tasks"),
        (True, 7, NEEDED, "worker"),
        (True, 8, NEEDED - 1, "worker"),
        (False, 100, NEEDED, "worker"),
    ],
)
def test_tasks_decode_where_gpus_train_and_four_cpus_each_and_the_store_allow(on_gpu, cpus, store, place):
    spare = {"CPU": float(cpus), "object_store_memory": float(store)}
    assert decode_place("auto", NEEDED, 2, spare, on_gpu=on_gpu) == place
    assert decode_place("worker", NEEDED, 2, spare, on_gpu=on_gpu) == "worker"
    assert decode_place("auto", NEEDED, 2, None, on_gpu=on_gpu) == "worker"


def test_tasks_that_are_asked_for_are_refused_where_the_store_is_too_small():
    spare = {"object_store_memory": float(NEEDED)}
    assert decode_place("tasks", NEEDED, 2, spare, on_gpu=False) == "tasks"
    with pytest.raises(InputError, match=r"crops would take 10.5 GiB .* which holds 10.0 GiB"):
        decode_place("tasks", NEEDED + (1 << 29), 2, spare, on_gpu=False)


def test_crops_take_two_windows_and_what_is_read_ahead():
    window = 4096 * 3 * 224**2
    assert crop_store_bytes(4096, 224, 1) == 4 * window
    assert crop_store_bytes(8192, 224, 1) == 4 * window + (2 << 30)
    assert crop_store_bytes(100, 224, 8) == 4 * 100 * 3 * 224**2
