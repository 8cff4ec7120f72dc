"""What is said to somebody who asks for more workers than there is room for."""

import logging
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import ray

from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.room import check_resources
from beamclip.cluster.session import _check_answers, _start, cluster_address, ray_session
from beamclip.errors import FailedRunError, InputError


@pytest.fixture
def cpus(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> float:
    """CPUs of a Ray that nobody joined from elsewhere."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return float(ray.cluster_resources()["CPU"])


def starving(cpus: float) -> WorkersConfig:
    """Workers that fit, but take every CPU."""
    return WorkersConfig(num_workers=1, cpus_per_worker=cpus)


def test_workers_that_leave_no_cpu_to_ray_data_are_refused_with_the_sum(cpus: float) -> None:
    want = (
        f"^--num-workers 1 with {cpus:g} CPU each: of {cpus:g} CPUs, each node keeps 1 .* room for 0.*--cpus"
    )
    with pytest.raises(InputError, match=want):
        check_resources(starving(cpus))


def test_workers_that_leave_one_cpu_are_accepted(cpus: float) -> None:
    exact = WorkersConfig(num_workers=1, cpus_per_worker=cpus - 1)
    assert check_resources(exact) is None  # type: ignore[func-returns-value]


def test_a_range_of_workers_starts_where_its_least_number_fits(cpus: float) -> None:
    config = WorkersConfig(num_workers="1..64", cpus_per_worker=cpus - 1)
    assert check_resources(config) is None  # type: ignore[func-returns-value]
    with pytest.raises(InputError, match=r"^--num-workers 2\.\.64 with .* there is room for 1\."):
        check_resources(replace(config, num_workers="2..64"))


def test_more_workers_than_gpus_are_refused_with_both_numbers(cpus: float) -> None:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    greedy = WorkersConfig(num_workers=gpus + 1, use_gpu=True, cpus_per_worker=0.0)
    with pytest.raises(InputError, match=f"^--use-gpu with --num-workers {gpus + 1}: there are {gpus} GPUs"):
        check_resources(greedy)


def test_a_cluster_that_was_joined_may_grow_and_is_waited_for(
    cpus: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with caplog.at_level(logging.WARNING, "beamclip"):
        check_resources(WorkersConfig(num_workers=2, cpus_per_worker=cpus))
    assert f"the cluster has {cpus:g} CPUs" in caplog.text


def test_a_cluster_that_was_joined_does_not_grow_for_workers_that_fit_and_starve(
    cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(InputError, match="each node keeps 1 to read data"):
        check_resources(starving(cpus))


def test_a_ray_that_a_busy_machine_does_not_start_in_time_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(FailedRunError, match=r"^Ray did not start within 30 s.*Run the command again\.$"):
        _start({}, {})


def test_sigterm_while_ray_starts_ends_a_command_as_ctrl_c_does() -> None:
    program = (
        "import os, signal, sys, threading\n"
        "from beamclip.cluster.session import ray_session\n"
        "from beamclip.commands.command_line import run_command\n"
        "from beamclip.tracking.config import TrackingConfig\n"
        "def body(_):\n"
        "    import ray._private.node as node\n"
        "    started = node.Node.start_gcs_server\n"
        "    def start_gcs_server(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return started(self)\n"
        "    node.Node.start_gcs_server = start_gcs_server\n"
        "    with ray_session():\n"
        "        print('up')\n"
        "sys.exit(run_command(TrackingConfig, body, '', argv=[]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1:]) == (130, "", ["interrupted"])


def test_workers_may_share_a_gpu() -> None:
    assert WorkersConfig(use_gpu=True, gpus_per_worker=0.25).resources == {"CPU": 1.0, "GPU": 0.25}
    assert WorkersConfig(gpus_per_worker=0.25).resources == {"CPU": 0.5}
    with pytest.raises(InputError, match="gpus_per_worker is 0"):
        WorkersConfig(gpus_per_worker=0.0)


def test_a_ray_that_was_up_before_stays_up(ray_cluster: None) -> None:
    with ray_session():
        assert ray.is_initialized()
    assert ray.is_initialized()


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a command that has just begun, in whatever order tests run."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "head:port", "foo bar:6379", "6379", "[::1]"])
def test_an_address_of_no_cluster_is_refused_in_one_line(
    address: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=r"not an address of a Ray cluster\. Give HOST:PORT"), ray_session():
        pass


def test_a_port_where_nobody_listens_is_refused_at_once(
    no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused.getsockname()[1]}")
        with (
            pytest.raises(InputError, match=r"no Ray cluster answers there \(Connection refused\)"),
            ray_session(),
        ):
            pass


def test_a_port_where_something_else_listens_is_refused(
    no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("beamclip.cluster.session.ANSWER_WITHIN_S", 0.1)
        with pytest.raises(InputError, match=r"\(no answer within 0 s\)"), ray_session():
            pass


def test_the_ray_that_runs_answers(ray_cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    assert _check_answers(address) is None  # type: ignore[func-returns-value]
    with pytest.raises(InputError, match=r"^RAY_ADDRESS=.*:1"):
        _check_answers(f"{address.rpartition(':')[0]}:1")


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_an_empty_address_is_this_machine(address: str, cpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() is None
    # A Ray of the command's own does not grow.
    with pytest.raises(InputError, match="Lower --num-workers"):
        check_resources(WorkersConfig(num_workers=2, cpus_per_worker=cpus))
