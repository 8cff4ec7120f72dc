"""Where a training decodes its images."""

from dataclasses import replace

import pytest

from beamclip.cluster import WorkersConfig
from beamclip.errors import InputError
from beamclip.training.decode_place import Place, decode_place

GPUS = WorkersConfig(num_workers=2, use_gpu=True, cpus_per_worker=1)
BYTES = 10 << 30


@pytest.mark.parametrize(
    ("workers", "cpus", "store", "place"),
    [
        (GPUS, 10, BYTES, "tasks"),
        (GPUS, 9, BYTES, "worker"),
        (GPUS, 10, BYTES - 1, "worker"),
        (replace(GPUS, use_gpu=False), 100, BYTES, "worker"),
    ],
)
def test_tasks_decode_where_gpus_train_and_four_cpus_each_and_the_store_allow(
    workers: WorkersConfig, cpus: int, store: int, place: Place
) -> None:
    resources = {"CPU": float(cpus), "object_store_memory": float(store)}
    assert decode_place("auto", BYTES, workers, resources) == place
    assert decode_place("worker", BYTES, workers, resources) == "worker"


def test_tasks_that_are_asked_for_are_refused_where_the_store_is_too_small() -> None:
    resources = {"CPU": 1.0, "object_store_memory": float(BYTES)}
    assert decode_place("tasks", BYTES, GPUS, resources) == "tasks"
    with pytest.raises(InputError, match=r"crops would take 10.5 GiB .* which holds 10.0 GiB"):
        decode_place("tasks", BYTES + (1 << 29), GPUS, resources)
