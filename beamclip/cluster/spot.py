"""`python -m beamclip.cluster.spot`: leave the cluster in time when the provider takes this machine away.

A spot machine gets a short notice: about two minutes on EC2, 30 seconds on Google Cloud. Ray does not listen
for it. This program runs beside Ray on each spot node:

1. It finds out which provider's metadata server answers. If none does, it ends.
2. It asks that server every few seconds whether the machine will be taken away.
3. On a notice it has Ray drain the node: no new work comes, and a training saves a checkpoint at once.

While it waits it needs the standard library only, about 20 MB of memory.
"""

import argparse
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

ANSWER_WITHIN_S = 2.0
"""Seconds that a metadata server, which is on the same host, has to answer."""
GOOGLE_NOTICE_S = 30.0
"""Seconds between Google Cloud's notice and the end of the machine."""
TRIES_TO_FIND = 3
"""How often providers are looked for: the network of a new machine may be late."""
SECONDS_BETWEEN_TRIES = 1.0
"""Pause before providers are looked for again, and before Ray is asked again to drain the node."""
DRAIN_WITHIN_S = 15.0
"""Seconds that Ray has for one attempt to drain the node; two are usual."""


@dataclass(frozen=True)
class Notice:
    """The provider will take this machine away.

    Attributes:
        text: what the provider said, for logs.
        ends: when the machine may end, in seconds since 1970.
    """

    text: str
    ends: float


class Provider(Protocol):
    """A cloud whose metadata server tells a machine about itself."""

    @property
    def name(self) -> str:
        """The provider's name, for logs."""

    @property
    def seconds_between_looks(self) -> float:
        """Pause between two looks, in seconds."""

    def notice(self) -> Notice | None:
        """Return the notice, None while there is none.

        Raises:
            OSError: the metadata server does not answer, or it is another provider's.
            ValueError: its answer cannot be read.
        """


@dataclass(frozen=True)
class Ec2:
    """Amazon EC2. Its rebalance recommendation is no notice: such a machine may stay for hours."""

    url: str = "http://169.254.169.254"
    name: str = "EC2"
    seconds_between_looks: float = 5.0

    def notice(self) -> Notice | None:
        """Return the notice of an interruption; see `Provider`."""
        # A new token for each look: a token would have to be renewed after at most six hours.
        token = _answer(
            f"{self.url}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT"
        )
        try:
            answer = _answer(
                f"{self.url}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
            )
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        action, ends = _ec2_action(answer)
        return Notice(f"EC2 will {action} this machine", ends)


def _ec2_action(answer: str) -> tuple[str, float]:
    """Return what EC2 will do (stop, terminate, hibernate) and when, in seconds since 1970."""
    try:
        said = json.loads(answer)
        return str(said["action"]), datetime.fromisoformat(said["time"]).timestamp()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"EC2's notice cannot be read: {answer!r}") from error


@dataclass(frozen=True)
class GoogleCloud:
    """Google Cloud, for spot and preemptible machines."""

    url: str = "http://metadata.google.internal"
    name: str = "Google Cloud"
    # Of 30 seconds, none should be wasted.
    seconds_between_looks: float = 1.0

    def notice(self) -> Notice | None:
        """Return the notice of a preemption; see `Provider`."""
        preempted = _answer(
            f"{self.url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
        ).strip()
        if preempted not in ("TRUE", "FALSE"):
            raise ValueError(f"Google Cloud's answer is neither TRUE nor FALSE: {preempted[:80]!r}")
        if preempted == "FALSE":
            return None
        return Notice("Google Cloud preempts this machine", time.time() + GOOGLE_NOTICE_S)


def _answer(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """Return what a metadata server answers.

    Raises:
        OSError: nobody answers in time, or with an error (urllib.error.HTTPError).
    """
    # A proxy would ask the server of its own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with opener.open(request, timeout=ANSWER_WITHIN_S) as response:
            answer: bytes = response.read(10_000)
    except http.client.HTTPException as error:
        raise OSError(f"{url}: this is no HTTP answer") from error
    return answer.decode(errors="replace")


def log(message: str) -> None:
    """Print one line with the time of day in UTC."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}", flush=True)


def find_provider(providers: Sequence[Provider]) -> Provider | None:
    """Return the first provider whose metadata server answers as its own does, None if there is none."""
    for attempt in range(TRIES_TO_FIND):
        if attempt:
            time.sleep(SECONDS_BETWEEN_TRIES)
        for provider in providers:
            try:
                provider.notice()
            except (OSError, ValueError):
                continue
            return provider
    return None


def wait_for_notice(provider: Provider) -> Notice:
    """Ask `provider` until it gives notice. A server that fails for a while is asked again."""
    failure = ""
    while True:
        try:
            notice = provider.notice()
        except (OSError, ValueError) as error:
            # Once, and not at every look.
            if str(error) != failure:
                failure = str(error)
                log(f"{provider.name}: no answer, asking again: {failure}")
        else:
            if notice is not None:
                return notice
            failure = ""
        time.sleep(provider.seconds_between_looks)


def drain_until_accepted(notice: Notice, drain: Callable[[Notice], bool]) -> bool:
    """Have the node drained, again and again until Ray accepts it; whether it did before the machine ends.

    Ray may still be starting when the notice comes. The first try is made even if the end seems past: a clock
    may be wrong.
    """
    while not drain(notice):
        if time.time() >= notice.ends:
            return False
        time.sleep(SECONDS_BETWEEN_TRIES)
    return True


@dataclass(frozen=True)
class RayNode:
    """A node of Ray on this machine: its id in hexadecimal, and HOST:PORT of the cluster's head."""

    node_id: str
    head: str


def nodes_here(processes: Path = Path("/proc")) -> list[RayNode]:
    """Return the nodes of Ray on this machine: mostly one, none before Ray has started.

    Without an id, `ray drain-node` joins the cluster to ask for that of its node. A node without work ends at
    once and takes the command with it, which then seems to have failed. So the id is read from the command
    line of Ray's process.
    """
    found = []
    for folder in processes.glob("[0-9]*"):
        try:
            program, *words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            # It has ended.
            continue
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if Path(program).name == "raylet" and {"--node_id", "--gcs-address"} <= options.keys():
            found.append(RayNode(options["--node_id"], options["--gcs-address"]))
    return found


def drain_command(node: RayNode, notice: Notice) -> list[str]:
    """Return the command that drains a node."""
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
        *("--address", node.head),
        *("--node-id", node.node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", notice.text),
        *("--deadline-remaining-seconds", str(max(0, int(notice.ends - time.time())))),
    ]


def drain_here(notice: Notice, address: str | None) -> bool:
    """Have Ray drain the nodes on this machine; return whether it accepted, and print why if it did not.

    Args:
        notice: why, and until when.
        address: HOST:PORT of the cluster's head; None for the one that the node itself was given.
    """
    nodes = nodes_here()
    if not nodes:
        log("no node of Ray runs here")
        return False
    return all([_drain(replace(node, head=address or node.head), notice) for node in nodes])


def _drain(node: RayNode, notice: Notice) -> bool:
    try:
        done = subprocess.run(
            drain_command(node, notice),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DRAIN_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        log(f"{node.head} did not answer within {DRAIN_WITHIN_S:.0f} s")
        return False
    if done.returncode:
        log(f"{node.head} did not drain this node: {(done.stdout.strip().splitlines() or ['no output'])[-1]}")
    return done.returncode == 0


def watch(providers: Sequence[Provider], drain: Callable[[Notice], bool]) -> int:
    """Wait for a notice and have the node drained; return the exit code.

    Args:
        providers: those that may have given this machine, the likeliest first.
        drain: asks for the node to be drained; returns whether that was accepted.

    Returns:
        0 if the node was drained or no provider answers, 1 if the time was over before it was drained.
    """
    provider = find_provider(providers)
    if provider is None:
        names = " nor ".join(each.name for each in providers)
        log(f"neither {names} answers: no notices to wait for")
        return 0
    log(f"waiting for a notice of {provider.name}")
    return leave(wait_for_notice(provider), drain)


def leave(notice: Notice, drain: Callable[[Notice], bool]) -> int:
    """Have the node drained because of `notice`; return the exit code, as `watch` does."""
    log(f"{notice.text}, in {notice.ends - time.time():.0f} s")
    if drain_until_accepted(notice, drain):
        log(f"Ray drains this node, {notice.ends - time.time():.0f} s before the end")
        return 0
    log("the time was over before Ray drained this node")
    return 1


def main() -> int:
    """Run the command and return the exit code; see `watch`."""
    parser = argparse.ArgumentParser(
        prog="python -m beamclip.cluster.spot",
        description="Drain this Ray node when EC2 or Google Cloud gives notice that the machine will end.",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the cluster's head (default: the one that the node was started with)",
    )
    parser.add_argument(
        "--ends-in",
        type=float,
        metavar="SECONDS",
        help="drain the node now, since it ends in so many seconds; for the preStop hook of a pod",
    )
    arguments = parser.parse_args()

    def drain(notice: Notice) -> bool:
        return drain_here(notice, arguments.address)

    if arguments.ends_in is not None:
        return leave(Notice("this node will be stopped", time.time() + arguments.ends_in), drain)
    return watch([Ec2(), GoogleCloud()], drain)


if __name__ == "__main__":
    sys.exit(main())
