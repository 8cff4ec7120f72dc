"""Workers that were started before there was anything to train."""

import pytest

from beamclip.cluster.config import WorkersConfig
from beamclip.errors import InputError
from beamclip.training.waiting import waiting_workers


def test_workers_that_get_no_job_go_home(ray_cluster: None) -> None:
    with waiting_workers(WorkersConfig(num_workers=1)) as workers:
        assert workers is not None
        workers.wait_for_ray()
        workers.begin()
    assert workers.ended.result(timeout=120) is None


def test_workers_that_nobody_asked_for_are_not_started(ray_cluster: None) -> None:
    with waiting_workers(WorkersConfig(num_workers=1)) as workers:
        assert workers is not None
        workers.wait_for_ray()
    with pytest.raises(AssertionError, match="not started"):
        workers.ended.done()


def test_a_cluster_that_is_too_small_is_told_when_it_is_asked_for(ray_cluster: None) -> None:
    with waiting_workers(WorkersConfig(num_workers=1000)) as workers:
        assert workers is not None
        with pytest.raises(InputError, match=r"--num-workers 1000 with 0\.5 CPU each: .* there is room for"):
            workers.wait_for_ray()


def test_a_command_that_trains_by_itself_starts_nobody() -> None:
    with waiting_workers(WorkersConfig(num_workers=0)) as workers:
        assert workers is None
