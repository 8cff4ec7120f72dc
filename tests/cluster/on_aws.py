"""cluster.yaml from `make aws-role` to `make down`, where moto is AWS and its instances are namespaces.

    python tests/cluster/on_aws.py

Ray's own AWS provider starts and ends instances; roles, security group, bucket and image are moto's. Here an
instance gets its addresses and its key, and finds the rights of its role at its metadata service. A head
starts, an ingest writes to the bucket, a task that asks for a GPU gets a machine, and all of it ends.
"""

import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machines import LAPTOP, Machines, missing
from several_machines import CLUSTER_FILE, Cluster, report, standing, start_machine

BUCKET, REGION, IMAGE, USER_ADDRESS = "birds", "us-west-2", "ami-785db401", f"{LAPTOP}/32"
ENDPOINT = f"http://{LAPTOP}:5000"
ACCOUNT = {
    "AWS_ENDPOINT_URL": ENDPOINT,
    "AWS_ACCESS_KEY_ID": "of-the-user",
    "AWS_SECRET_ACCESS_KEY": "of-the-user",
    "AWS_DEFAULT_REGION": REGION,
}
SHOWN = ("InstanceId", "InstanceType", "State", "PrivateIpAddress", "PublicIpAddress", "IamInstanceProfile")
WATCH = f"""
import boto3, json, time
ec2 = boto3.client("ec2")
while True:
    found = [each for one in ec2.describe_instances()["Reservations"] for each in one["Instances"]]
    print(json.dumps([{{name: each.get(name) for name in {SHOWN!r}}} | {{"Spot": "InstanceLifecycle" in each}}
                      for each in found]), flush=True)
    time.sleep(1)
"""
ASK_FOR_GPU = (
    "import ray, time; ray.init(log_to_driver=False); began = time.time(); "
    "task = ray.remote(num_gpus=1)(lambda: ray.util.get_node_ip_address()); "
    "print('GPU machine:', ray.get(task.remote(), timeout=240), round(time.time() - began), 's')"
)


@dataclass
class Cloud:
    """Instances of moto, and the machine that each of them is."""

    machines: Machines
    instances: list[dict[str, Any]] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)

    def follow(self, lines: Iterator[str]) -> None:
        """Give each instance that starts a machine, as long as there are lines."""
        for line in lines:
            self.instances = json.loads(line)
            for instance in self.instances:
                known = instance["InstanceId"] in self.given or len(self.given) == len(self.machines.names)
                if instance["State"]["Name"] == "running" and not known:
                    self._boot(instance, self.machines.names[len(self.given)])

    def _boot(self, instance: dict[str, Any], name: str) -> None:
        self.given[instance["InstanceId"]] = name
        addresses = [instance[key] for key in ("PrivateIpAddress", "PublicIpAddress") if instance[key]]
        for address in addresses:
            self._ip(name, f"addr add {address}/32 dev eth0")
            for other in ("laptop", *self.machines.names):
                if other != name:
                    self._ip(other, f"route replace {address}/32 via {self.machines.address(name)}")
        self._ip(name, f"route replace default via {LAPTOP} src {addresses[0]}")
        pair = next((self.machines.laptop_home / ".ssh").glob("*.pem"))
        public = self.machines.laptop(["ssh-keygen", "-y", "-f", str(pair)]).stdout.strip()
        self.machines.on(name, f"echo '{public}' >> ~/.ssh/authorized_keys")

    @staticmethod
    def _ip(name: str, words: str) -> None:
        subprocess.run(["ip", "netns", "exec", f"bc-{name}", "ip", *words.split()], check=True)

    def described(self, kind: str) -> list[str]:
        """How each instance of a type that runs was bought, and its instance profile."""
        running = [
            each
            for each in self.instances
            if each["InstanceType"] == kind and each["State"]["Name"] == "running"
        ]
        bought = ["spot" if each["Spot"] else "on demand" for each in running]
        profiles = [each["IamInstanceProfile"]["Arn"].rpartition("/")[2] for each in running]
        return [f"{how}, {profile}" for how, profile in zip(bought, profiles, strict=True)]


@contextlib.contextmanager
def cloud_of(cluster: Cluster) -> Iterator[Cloud]:
    """Keep moto up inside, with a bucket, and give its instances machines."""
    machines = cluster.machines
    server = subprocess.Popen(
        machines.laptop_words([sys.executable, "-m", "moto.server", "-H", LAPTOP, "-p", "5000"]),
        env={**machines.laptop_environment(), "MOTO_ENABLE_AMI_VALIDATION": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    machines.processes["moto"] = server
    machines.variables.update(ACCOUNT)
    make_bucket = f"import boto3; boto3.client('s3').create_bucket(Bucket={BUCKET!r}, " + (
        f"CreateBucketConfiguration={{'LocationConstraint': {REGION!r}}})"
    )
    until = time.monotonic() + 30
    while machines.laptop([sys.executable, "-c", make_bucket], check=False).returncode:
        if time.monotonic() > until:
            raise RuntimeError("moto does not answer")
    watch = subprocess.Popen(
        machines.laptop_words([sys.executable, "-c", WATCH]),
        env=machines.laptop_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    machines.processes["watch"] = watch
    assert watch.stdout is not None
    cloud = Cloud(machines)
    threading.Thread(target=cloud.follow, args=(watch.stdout,), daemon=True).start()
    yield cloud


def edit_cluster_file(checkout: Path) -> None:
    """Edit the marked lines of cluster.yaml, and no others."""
    edits = {
        "203.0.113.1/32": USER_ADDRESS,
        "ami-00000000000000000": IMAGE,
        "s3://YOUR-BUCKET": f"s3://{BUCKET}",
    }
    lines = (checkout / "cluster.yaml").read_text().splitlines()
    for old, new in edits.items():
        places = [number for number, line in enumerate(lines) if line.endswith("# EDIT") and old in line]
        assert len(places) == 1, f"{old}: on {len(places)} lines to edit"
        lines[places[0]] = lines[places[0]].replace(old, new)
    (checkout / CLUSTER_FILE).write_text("\n".join(lines) + "\n")


def prepare_machines(cluster: Cluster) -> None:
    """Make the machines what instances are: rights from the metadata service, AWS at another address."""
    for name in cluster.machines.names:
        start_machine(cluster, name, role="beamclip-head" if name == "head" else "beamclip-worker")
        cluster.machines.on(name, f"sed -i '1i export AWS_ENDPOINT_URL={ENDPOINT}' ~/.bashrc")


def use_cluster(cluster: Cluster, cloud: Cloud) -> None:
    """Go from `make aws-role` to `make down`."""
    cluster.step("make up, before make aws-role", "up", r"^.*make aws-role.*$", code=2)
    cluster.step("make aws-role", "aws-role", r"security group.*|beamclip-worker.*")
    cluster.step("make up", "up", r"ray get-head-ip", timeout=300)
    heads = cloud.described("m5.2xlarge")
    cluster.note("its head", 0.0, str(heads), right=heads == ["on demand, beamclip-head"])
    cluster.job(
        "ingest, to the bucket",
        "ingest --urls my/test.parquet --keep-columns label --image-size 64 --shard-size 250 "
        "--allow-private-hosts",
        r"^ingest .* URLs in .*$",
    )
    began = time.monotonic()
    ray = str(Path(sys.executable).with_name("ray"))
    ask = f"python -c {shlex.quote(ASK_FOR_GPU)}"
    done = cluster.machines.laptop([ray, "exec", CLUSTER_FILE, ask], check=False, cwd=cluster.checkout)
    cluster.said(f"ray exec {CLUSTER_FILE} {ask}", said := done.stdout)
    found = re.search(r"^GPU machine: .*$", said, re.MULTILINE)
    machines = cloud.described("g5.12xlarge")
    right = found is not None and machines == ["spot, beamclip-worker"]
    cluster.note(
        "a GPU machine on demand", time.monotonic() - began, f"{found and found[0]} {machines}", right=right
    )
    cluster.step("make down", "down", r"No nodes remaining", timeout=200)
    time.sleep(3)
    left = [each["State"]["Name"] for each in cloud.instances if each["State"]["Name"] == "running"]
    cluster.note("instances that run on", 0.0, str(left or "none"), right=not left)
    cluster.step("make aws-role ARGS=--delete", "aws-role ARGS=--delete", r".*(removed|deleted|nothing).*")


def main() -> int:
    """Run the test; return 0 if all was as it should be, or machines cannot be made here."""
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    cluster = Cluster(Machines(Path("/tmp/beamclip-machines")), Path("runs/cluster-test-aws.txt").absolute())
    cluster.transcript.parent.mkdir(parents=True, exist_ok=True)
    cluster.transcript.unlink(missing_ok=True)
    began = time.monotonic()
    with standing(cluster, spot=False), cloud_of(cluster) as cloud:
        edit_cluster_file(cluster.checkout)
        prepare_machines(cluster)
        use_cluster(cluster, cloud)
    return report(cluster, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
