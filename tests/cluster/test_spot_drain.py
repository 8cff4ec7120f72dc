"""A node of a real Ray is drained, where this process may have a network and process ids of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PRIVATE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]

# A node without work ends as soon as it is drained.
SCRIPT = """
import os, subprocess, sys, time
from beamclip.cluster.spot import nodes_here

os.environ["RAY_AUTH_MODE"] = "token"  # as cluster/setup.sh sets it on each node
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 2
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
ray = [sys.executable, "-m", "ray.scripts.scripts"]
start = ["start", "--head", "--num-cpus=1", "--include-dashboard=false", "--temp-dir=" + sys.argv[1]]
subprocess.run(ray + start, check=True, stdout=subprocess.DEVNULL)
print(len(nodes_here()), "node runs")
drain = subprocess.run([sys.executable, "-m", "beamclip.cluster.spot", "--ends-in", "60"])
print("exit code", drain.returncode)
until = time.monotonic() + 30
while nodes_here() and time.monotonic() < until:
    time.sleep(0.1)
print(len(nodes_here()), "nodes run")
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_ray_drains_the_node():
    if subprocess.run([*PRIVATE, "true"], capture_output=True).returncode:
        pytest.skip("no network and process ids of its own: unshare needs root")
    # In pytest's folders Ray's sockets would have too long a path.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [*PRIVATE, sys.executable, "-u", "-c", SCRIPT, folder],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
    lines = done.stdout.splitlines()
    assert lines[0] == "1 node runs", done.stdout + done.stderr
    assert "this node will be stopped, in 60 s" in lines[1]
    assert "Ray drains this node, " in lines[2]
    assert lines[3:] == ["exit code 0", "0 nodes run"]
