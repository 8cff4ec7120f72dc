"""A cluster of three machines, made of this one: what docs/cluster.md does, and what goes wrong.

    python tests/cluster/several_machines.py [--only up data train faults mistakes home down]

Starts a cluster by the file for machines of one's own, and as its user downloads, pre-trains, embeds,
distils, sweeps and scores on it. Then it gives wrong input; kills a worker, a command and a machine, takes a
machine away with notice, and cuts a cable; fetches the results and ends the cluster. Samples, order and final
weights of each run are compared with those of one that was left alone. The whole output of every command goes
to a transcript.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from machines import HOME, LAPTOP, ROOT, Machines, missing
from safetensors.torch import load_file

from beamclip.corpus.glyphs import GlyphConfig, write_corpus, write_url_list
from beamclip.json_lines import read_json_lines
from beamclip.training.trace import read_trace

SCRATCH = Path("/tmp/beamclip-machines")
CLUSTER_FILE = "mine.yaml"
STORAGE = "/shared/beamclip"
IMAGES, TEST_IMAGES, WEB_PORT = 3000, 600, 8000
STEPS, FAULT_AT = 400, 100
"""Steps of a training that something happens to, and the step after which it happens."""
METADATA_ADDRESS = "169.254.169.254"
"""Where a machine of EC2 finds its metadata, the notice that it will be taken away among them."""
NOTICE_S = 12
MOST_SHOWN = 160
"""Characters of a result in the table; the transcript has all of it."""
ANSWER_WITHIN_S = 15.0
"""Seconds within which wrong input must be answered, in one line."""

VIEWS = "--crop-scale-min 0.8 --flip-prob 0"
SMALL = f"--batch-size 64 --threads-per-worker 1 {VIEWS}"
TWO_NODES = "--num-workers 2 --cpus-per-worker 1"
STUDENT = f"--student test_resnet --lr 3e-3 --classes my/classes.yaml --templates name {SMALL}"


@dataclass
class Cluster:
    """The machines, the user's checkout on the laptop, and what was seen."""

    machines: Machines
    transcript: Path
    rows: list[tuple[str, str, str]] = field(default_factory=lambda: [("step", "seconds", "result")])
    problems: list[str] = field(default_factory=list)

    @property
    def checkout(self) -> Path:
        """The user's copy of this project."""
        return self.machines.laptop_home / "beamclip"

    def note(self, step: str, seconds: float, result: str, *, right: bool = True) -> None:
        """Add a row; what is not right ends the test with exit code 1, after everything else."""
        self.rows.append((step, f"{seconds:.1f}", result if right else f"WRONG: {result}"))
        if not right:
            self.problems.append(f"{step}: {result}")
        print(f"{step:<42}{seconds:>8.1f} s  {'' if right else 'WRONG: '}{result}", flush=True)

    def said(self, line: str, output: str) -> None:
        """Add a command and its output to the transcript."""
        with self.transcript.open("a") as file:
            file.write(f"$ {line}\n{output}\n")

    def make(self, line: str, *, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run make in the checkout, on the laptop."""
        words = ["make", "--no-print-directory", f"CLUSTER={CLUSTER_FILE}", *shlex.split(line)]
        done = self.machines.laptop(words, check=False, timeout=timeout, cwd=self.checkout)
        self.said(shlex.join(words), done.stdout)
        return done

    def step(self, name: str, line: str, result: str, *, timeout: float = 300, code: int = 0) -> None:
        """Run make, which must exit with `code`, and note the line of its output that `result` finds."""
        began = time.monotonic()
        done = self.make(line, timeout=timeout)
        found = re.search(result, done.stdout, re.MULTILINE)
        shown = " ".join(found[0].split()) if found else " | ".join(done.stdout.splitlines()[-3:])
        noise = of_ray(done.stdout) if line.startswith("submit") else []
        self.note(
            name, time.monotonic() - began, shown, right=bool(found) and done.returncode == code and not noise
        )

    def job(self, name: str, command: str, result: str) -> None:
        """Run a command of beamclip as a job, and note the line of its output that `result` finds."""
        self.step(name, f"submit ARGS={shlex.quote(command)}", result)

    def wait_for_nodes(self, number: int, *, seconds: float = 120) -> bool:
        """Wait until the cluster has so many nodes."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            said = self.machines.on("head", "ray status", check=False).stdout
            if (
                sum(int(count) for count in re.findall(r"^ (\d+) local\.cluster\.node$", said, re.MULTILINE))
                == number
            ):
                return True
            time.sleep(1)
        return False


def of_ray(output: str) -> list[str]:
    """The lines of an output that Ray's own code wrote, which no user should see."""
    return re.findall(r"^.*(?:core_worker|\.cc:\d+|state-dump|\(raylet|Traceback).*$", output, re.MULTILINE)


# What a user does.


def bring_up(cluster: Cluster) -> None:
    """Start the cluster by the file for one's own machines, with its marked lines edited."""
    cluster.step("make up", "up", r"ray get-head-ip", timeout=200)
    began = time.monotonic()
    there = cluster.wait_for_nodes(3)
    cluster.note("two more nodes", time.monotonic() - began, "3 nodes", right=there)


def store_data(cluster: Cluster) -> None:
    """Download a URL list by tasks on both workers, and a labelled one."""
    options = (
        "--keep-columns label,style --image-size 64 --shard-size 250 --allow-private-hosts --distributor ray"
    )
    cluster.job(
        "ingest, on both workers", f"ingest --urls my/train.parquet {options}", r"^ingest .* URLs in .*$"
    )
    cluster.job(
        "ingest of labelled images", f"ingest --urls my/test.parquet {options} --out labelled", r"^ingest .*$"
    )


def train_models(cluster: Cluster) -> None:
    """Pre-train a teacher, embed by it, distil, sweep and score: each as a job."""
    scored = r"^zero-shot top-1 .*$"
    cluster.job(
        "pretrain, on two nodes",
        f"pretrain --data shards --model nano-resnet10t --steps 100 --lr 2e-3 --templates name {SMALL} "
        f"{TWO_NODES} --classes my/classes.yaml --eval-data labelled --out runs/teacher",
        scored,
    )
    cluster.job(
        "embed, on two nodes",
        f"embed --data shards --teacher runs/teacher --augmentations 2 {VIEWS} {TWO_NODES}",
        r"^cache .*$",
    )
    cluster.job(
        "distill, on two nodes",
        f"distill --data shards --teacher runs/teacher {STUDENT} {TWO_NODES} --steps 60 --eval-data labelled "
        "--out runs/student",
        scored,
    )
    cluster.job(
        "sweep, its default space",
        f"sweep --data cache --teacher runs/teacher {STUDENT} --steps 30 --eval-data labelled "
        "--context-source captions --trials 4 --no-asha --out runs/sweep",
        r"^best: .*$",
    )
    cluster.job(
        "evaluate, on two nodes",
        f"evaluate --model runs/student --data labelled --classes my/classes.yaml --templates name "
        f"{TWO_NODES} --out runs/scores",
        r"^zeroshot_top1 .*$",
    )


def bring_home(cluster: Cluster) -> None:
    """Fetch the runs, and look for them in MLflow."""
    cluster.step("make fetch", "fetch", r"^.*runs: .*student.*$")
    runs = cluster.checkout / "runs"
    names = ("model/open_clip_model.safetensors", "plots/curves.png", "summary.json", "config.yaml")
    absent = [name for name in names if not (runs / "student" / name).exists()]
    cluster.note(
        "results on the laptop",
        0.0,
        f"missing: {absent}" if absent else "model, plots, summary",
        right=not absent,
    )
    began = time.monotonic()
    tags = tags_of_runs(cluster)
    needed = {"mlflow.user", "mlflow.source.name", "mlflow.source.git.commit", "cluster"}
    lacking = {name: sorted(needed - set(found)) for name, found in tags.items() if needed - set(found)}
    right = {"teacher", "student", "sweep", "scores"} <= set(tags) and not lacking
    cluster.note(
        "MLflow, through its tunnel",
        time.monotonic() - began,
        f"{len(tags)} runs, lacking tags: {lacking}",
        right=right,
    )


def tags_of_runs(cluster: Cluster) -> dict[str, list[str]]:
    """The names of the tags of each run in the cluster's MLflow, read through `make ui`."""
    words = cluster.machines.laptop_words(
        ["make", "--no-print-directory", f"CLUSTER={CLUSTER_FILE}", "ui", "UI_PORT=5055"]
    )
    tunnel = subprocess.Popen(
        words,
        cwd=cluster.checkout,
        env=cluster.machines.laptop_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ask = (
        "import json, mlflow; c = mlflow.MlflowClient('http://127.0.0.1:5055'); "
        "runs = c.search_runs([e.experiment_id for e in c.search_experiments()], max_results=500); "
        "print(json.dumps({r.info.run_name: list(r.data.tags) for r in runs}))"
    )
    try:
        assert tunnel.stdout is not None
        cluster.said("make ui", tunnel.stdout.readline())
        done = cluster.machines.laptop([sys.executable, "-c", ask], check=False, timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tunnel.pid, signal.SIGINT)
        tunnel.wait(20)
    cluster.said("names of tags by run", done.stdout)
    found: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def end(cluster: Cluster) -> None:
    """End the cluster: nothing of it may run on."""
    cluster.step("make down", "down", r"No nodes remaining|0 random worker nodes|Requested", timeout=200)
    time.sleep(5)
    left = {
        name: cluster.machines.on(
            name, "pgrep -af 'ray|mlflow' | grep -v pgrep", check=False
        ).stdout.splitlines()
        for name in cluster.machines.names
    }
    alive = {name: len(lines) for name, lines in left.items() if lines}
    cluster.said("processes after ray down", json.dumps(left, indent=1))
    cluster.note("processes left behind", 0.0, str(alive or "none"), right=not alive)


# What goes wrong by itself.


@dataclass
class Training:
    """A distillation that runs on the head, in a folder that all machines see."""

    cluster: Cluster
    name: str
    workers: str = "2"
    process: "subprocess.Popen[str] | None" = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.began

    @property
    def out(self) -> Path:
        """Its folder, as this process sees it."""
        return self.cluster.machines.shared / "out" / self.name

    def start(self, *, resume: bool = False) -> None:
        """Start its command on the head, through SSH."""
        there = f"/shared/out/{self.name}"
        line = (
            f"beamclip distill --resume {there}"
            if resume
            else f"beamclip distill --data shards --teacher runs/teacher {STUDENT} --out {there} "
            f"--num-workers {self.workers} --cpus-per-worker 1 --steps {STEPS} --checkpoint-every 50 "
            "--log-every 5 --trace-samples"
        )
        machines = self.cluster.machines
        ssh = [
            "ssh",
            "-q",
            "-F",
            str(machines.key.parent / "config"),
            "-i",
            str(machines.key),
            f"ubuntu@{machines.address('head')}",
        ]
        self.process = subprocess.Popen(
            machines.laptop_words([*ssh, f"cd {HOME}/work && {line}"]),
            env=machines.laptop_environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_for_step(self, step: int, *, seconds: float = 200) -> int:
        """Wait until this step is recorded, or the command has ended; return the last recorded step."""
        until = time.monotonic() + seconds
        while True:
            records = read_json_lines(self.out / "metrics.jsonl")
            last = max((int(record["step"]) for record in records), default=0)
            if last >= step or time.monotonic() > until or self.ended:
                return last
            time.sleep(0.2)

    @property
    def ended(self) -> bool:
        """Whether its command has ended."""
        return self.process is not None and self.process.poll() is not None

    def finish(self, *, seconds: float = 300) -> int:
        """Wait for the end of its command; return its exit code."""
        assert self.process is not None
        try:
            output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
            output += "\n[not ended in time]"
        self.cluster.said(f"beamclip distill ({self.name})", output)
        if noise := of_ray(output):
            self.cluster.problems.append(f"{self.name}: Ray's own lines: {noise[0][:150]}")
        return self.process.returncode


def machine_with_worker(cluster: Cluster) -> str:
    """A machine other than the head on which a training worker runs."""
    for name in ("w2", "w1"):
        if cluster.machines.on(name, "pgrep -f '[r]ay::RayTrainWorker'", check=False).stdout.strip():
            return name
    return "w2"


def kill_worker(cluster: Cluster, training: Training) -> None:
    """Kill one training process."""
    cluster.machines.on(machine_with_worker(cluster), "pkill -9 -f '[r]ay::RayTrainWorker'", check=False)


def lose_machine(cluster: Cluster, training: Training) -> None:
    """End a machine, and start it again twenty seconds later, as its owner would."""
    name = machine_with_worker(cluster)
    cluster.machines.end(name)
    time.sleep(20)
    start_machine(cluster, name)


def cut_cable(cluster: Cluster, training: Training) -> None:
    """Cut the cable of a machine for forty seconds."""
    name = machine_with_worker(cluster)
    cluster.machines.cut(name, down=True)
    time.sleep(40)
    cluster.machines.cut(name, down=False)


def kill_command(cluster: Cluster, training: Training) -> None:
    """Kill the command itself, then resume its run."""
    cluster.machines.on("head", "pkill -9 -f '[b]eamclip distill'", check=False)
    training.finish()
    training.start(resume=True)


def take_with_notice(cluster: Cluster, training: Training) -> None:
    """Give a machine the notice of a spot machine, end it when the notice says, and start it again."""
    name = machine_with_worker(cluster)
    gone_at = time.time() + NOTICE_S
    (cluster.machines.folder / f"notice-{name}").write_text(
        json.dumps({"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(gone_at))})
    )
    time.sleep(max(0.0, gone_at - time.time()))
    cluster.machines.end(name)
    (cluster.machines.folder / f"notice-{name}").unlink()
    time.sleep(20)
    start_machine(cluster, name)


FAULTS: dict[str, tuple[str, Callable[[Cluster, Training], None]]] = {
    "worker killed": ("2", kill_worker),
    "machine lost, back after 20 s": ("2", lose_machine),
    "command killed, run resumed": ("2", kill_command),
    f"machine taken with {NOTICE_S} s notice": ("1..2", take_with_notice),
    "cable cut for 40 s": ("2", cut_cable),
}


def suffer_faults(cluster: Cluster) -> None:
    """Train undisturbed, then once with each fault, and compare."""
    calm = Training(cluster, "calm")
    calm.start()
    code = calm.finish()
    undisturbed = calm.seconds
    cluster.note("distill, left alone", undisturbed, f"exit code {code}", right=code == 0)
    for name, (workers, happen) in FAULTS.items():
        cluster.wait_for_nodes(3)
        training = Training(cluster, re.sub(r"\W+", "-", name), workers)
        training.start()
        training.wait_for_step(FAULT_AT)
        happen(cluster, training)
        code = training.finish()
        verdict, right = compared(training, calm, same_workers=workers == "2")
        lost = training.seconds - undisturbed
        cluster.note(name, lost, f"lost; exit code {code}; {verdict}", right=right and code == 0)


def compared(training: Training, calm: Training, *, same_workers: bool) -> tuple[str, bool]:
    """Describe the samples and the final weights of a run against those of one that was left alone."""
    try:
        mine, theirs = (keys_of(each.out / "trace") for each in (training, calm))
        weights = [load_file(each.out / "model" / "open_clip_model.safetensors") for each in (training, calm)]
    except (OSError, StopIteration) as error:
        return f"no result to compare ({error})", False
    counts = [Counter(key for keys in steps.values() for key in keys) for steps in (mine, theirs)]
    skipped, doubled = (counts[1] - counts[0]).total(), (counts[0] - counts[1]).total()
    order = sum(mine.get(step) != keys for step, keys in theirs.items())
    apart = max(float((weights[0][name] - value).abs().max()) for name, value in weights[1].items())
    text = f"{skipped} skipped, {doubled} doubled, {order} steps differ, weights differ by {apart:.1e}"
    return text, (skipped, doubled, order) == (0, 0, 0) and (apart == 0 or not same_workers)


def keys_of(trace: Path) -> dict[int, list[str]]:
    """The samples of each step."""
    return {step: [seen.key for seen in samples] for step, samples in read_trace(trace).items()}


# What a user gets wrong.


def make_mistakes(cluster: Cluster) -> None:
    """Give wrong input: each is answered in one line, with exit code 2, in time."""
    on = cluster.machines.on
    on("head", f"cp -r {STORAGE}/shards {HOME}/shards-here; mkdir -p {HOME}/mine", check=False)
    base = f"cd {HOME}/work && beamclip distill --teacher runs/teacher {STUDENT} {TWO_NODES} --steps 5"
    trained = f"{base} --data shards"
    mistakes = {
        "data on the head only": f"{base} --data {HOME}/shards-here",
        "checkpoints on the head only": f"{trained} --checkpoints {HOME}/mine",
        "storage that a node cannot write to": (
            f"export BEAMCLIP_STORAGE=/shared/readonly; {base} --data {STORAGE}/shards"
        ),
        "RAY_ADDRESS that does not answer": f"export RAY_ADDRESS=10.200.0.77:6379; {trained}",
        "a GPU where none can come": f"{trained} --use-gpu",
        "embed to the head only": (
            f"cd {HOME}/work && beamclip embed --data shards --teacher runs/teacher {TWO_NODES} "
            f"--out {HOME}/cache"
        ),
        "evaluate on the head's data": (
            f"cd {HOME}/work && beamclip evaluate --model runs/teacher --classes my/classes.yaml {TWO_NODES} "
            f"--data {HOME}/shards-here"
        ),
    }
    on("head", "mkdir -p /shared/readonly")
    on("w1", "sudo mount -t tmpfs -o ro tmpfs /shared/readonly")
    for name, line in mistakes.items():
        check_mistake(cluster, name, line)
    on("w1", "sudo umount /shared/readonly")
    spoil = "sed -i 's/^__version__ = .*/__version__ = \"0.0.1\"/' ~/beamclip/beamclip/__init__.py"
    on("w1", f"cp ~/beamclip/beamclip/__init__.py ~/kept.py && {spoil}")
    check_mistake(cluster, "another version on a node", trained)
    on("w1", "cp ~/kept.py ~/beamclip/beamclip/__init__.py")


def check_mistake(cluster: Cluster, name: str, line: str) -> None:
    """Run a line on the head that must fail in one line of text."""
    began = time.monotonic()
    done = cluster.machines.on("head", line, check=False, timeout=120)
    seconds = time.monotonic() - began
    cluster.said(line, done.stdout)
    errors = [each for each in done.stdout.splitlines() if each.startswith("error: ")]
    right = done.returncode == 2 and len(errors) == 1 and seconds < ANSWER_WITHIN_S
    cluster.note(name, seconds, errors[0] if errors else done.stdout.strip()[-200:], right=right)


# The stage.


def prepare(cluster: Cluster) -> None:
    """Lay out the laptop: a copy of the checkout, a corpus on a web server, class lists and URL lists."""
    machines, checkout = cluster.machines, cluster.checkout
    files = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    checkout.mkdir(parents=True)
    subprocess.run(
        ["rsync", "-a", "--from0", "--ignore-missing-args", "--files-from=-", f"{ROOT}/", f"{checkout}/"],
        input=files,
        check=True,
    )
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    for words in ("init -q", "add -A", "-c user.name=user -c user.email=user@laptop commit -q -m state"):
        subprocess.run(["git", *words.split()], cwd=checkout, check=True)
    corpus = machines.laptop_home / "corpus"
    paths = write_corpus(GlyphConfig(images=IMAGES, test_images=TEST_IMAGES), corpus)
    lists = checkout / "my"
    for split in ("train", "test"):
        write_url_list(corpus, split, f"http://{LAPTOP}:{WEB_PORT}", lists / f"{split}.parquet")
    shutil.copy(paths.classes, lists / "classes.yaml")
    edit_cluster_file(cluster)


def edit_cluster_file(cluster: Cluster) -> None:
    """Edit the marked lines of the file for one's own machines, and no others."""
    edits = {
        "head_ip:": cluster.machines.address("head"),
        "worker_ips:": f"[{', '.join(cluster.machines.address(name) for name in ('w1', 'w2'))}]",
        "ssh_user:": "ubuntu",
        "ssh_private_key:": str(cluster.machines.key),
        "- bash ~/beamclip/cluster/setup.sh": STORAGE,
    }
    lines = []
    for line in (cluster.checkout / "cluster" / "on-premises.yaml").read_text().splitlines():
        if line.endswith("# EDIT"):
            key = next(key for key in edits if line.strip().startswith(key))
            line = f"{line[: line.index(key)]}{key} {edits.pop(key)}"
        lines.append(line)
    assert not edits, f"no line to edit for {list(edits)}"
    (cluster.checkout / CLUSTER_FILE).write_text("\n".join(lines) + "\n")


def start_machine(cluster: Cluster, name: str, role: str = "") -> None:
    """Start a machine, and the metadata service that a machine of EC2 with this role would see."""
    serve = Path(__file__).with_name("metadata.py")
    space = ["ip", "netns", "exec", f"bc-{name}"]
    if f"metadata-{name}" not in cluster.machines.processes:
        subprocess.run([*space, "ip", "addr", "add", f"{METADATA_ADDRESS}/32", "dev", "lo"], check=True)
        cluster.machines.processes[f"metadata-{name}"] = subprocess.Popen(
            [
                *space,
                sys.executable,
                serve,
                METADATA_ADDRESS,
                cluster.machines.folder / f"notice-{name}",
                role,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    if name not in cluster.machines.processes:
        cluster.machines.start(name)


@contextlib.contextmanager
def standing(cluster: Cluster, *, spot: bool = True) -> Iterator[None]:
    """Keep machines and web server up inside, and with `spot` the metadata services that give notice."""
    machines = cluster.machines
    # Two tests would take each other's machines.
    lock = FileLock(f"{machines.folder}.lock", timeout=0)
    lock.acquire()
    # What a test that was killed has left.
    machines.close()
    machines.folder.mkdir(parents=True)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        machines.open()
        prepare(cluster)
        machines.processes["web"] = subprocess.Popen(
            machines.laptop_words(
                [
                    sys.executable,
                    "-m",
                    "http.server",
                    "--directory",
                    str(machines.laptop_home / "corpus"),
                    "--bind",
                    LAPTOP,
                    str(WEB_PORT),
                ]
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for name in ("w1", "w2") if spot else ():
            start_machine(cluster, name)
        machines.on("head", f"mkdir -p {HOME}/work")
        machines.laptop(
            [
                "rsync",
                "-a",
                "-e",
                f"ssh -q -F {machines.key.parent / 'config'} -i {machines.key}",
                f"{cluster.checkout}/my",
                f"ubuntu@{machines.address('head')}:{HOME}/work/",
            ]
        )
        yield
    finally:
        machines.close()
        lock.release()


PARTS: dict[str, Callable[[Cluster], None]] = {
    "up": bring_up,
    "data": store_data,
    "train": train_models,
    "mistakes": make_mistakes,
    "faults": suffer_faults,
    "home": bring_home,
    "down": end,
}


def main() -> int:
    """Run the parts in their order; return 0 if all was as it should be, or machines cannot be made here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run, in their order"
    )
    parser.add_argument("--transcript", type=Path, default=Path("runs/cluster-test.txt"))
    given = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    given.transcript.parent.mkdir(parents=True, exist_ok=True)
    given.transcript.unlink(missing_ok=True)
    cluster = Cluster(Machines(SCRATCH), given.transcript.absolute())
    began = time.monotonic()
    with standing(cluster):
        cluster.note("three machines", time.monotonic() - began, "head, w1, w2")
        for name, part in PARTS.items():
            if name in given.only:
                part(cluster)
    return report(cluster, time.monotonic() - began)


def report(cluster: Cluster, seconds: float) -> int:
    """Print the table and what was wrong; return the exit code."""
    lines = [f"| {step} | {taken} | {shown[:MOST_SHOWN]} |" for step, taken, shown in cluster.rows]
    print("", *lines[:1], "|---|---|---|", *lines[1:], sep="\n")
    print(f"\n{seconds:.0f} s; every command and its output: {cluster.transcript}")
    for problem in cluster.problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if cluster.problems else 0


if __name__ == "__main__":
    sys.exit(main())
