"""Machines made of one: namespaces with a root, an address, users and an SSH server of their own.

Each machine sees its own processes, its own /tmp and home, and one folder that all share, as by NFS. One more
namespace is the user's laptop: this machine's files, the machines' network. All of it goes when `close` is
called. Root with CAP_SYS_ADMIN and CAP_NET_ADMIN is needed, and overlayfs, sshd, ip, rsync and sudo.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NETWORK = "10.200.0"
LAPTOP = f"{NETWORK}.254"
PYTHON = "/usr/bin/python3"
USER = "ubuntu"
HOME = f"/home/{USER}"
PROGRAMS = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "rsync", "sudo", "mount", "chroot")


def missing() -> str | None:
    """Why machines cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "not root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"these programs are missing: {' '.join(absent)}"
    if f"{sys.version_info[0]}.{sys.version_info[1]}" not in _said(PYTHON, "--version"):
        return f"{PYTHON} is not of this Python's version"
    if _run("unshare", "--mount", "--net", "--pid", "--fork", "true").returncode:
        return "no namespaces may be made (in a container: --privileged)"
    return None


@dataclass
class Machines:
    """A laptop and some machines, by name; each has the address NETWORK.n, counted from 1."""

    folder: Path
    """Scratch folder, removed by `close`."""
    names: tuple[str, ...] = ("head", "w1", "w2")
    processes: dict[str, "subprocess.Popen[Any]"] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of the user on the laptop."""

    @property
    def disk(self) -> Path:
        """A file system in memory, since the upper layer of an overlay cannot lie on another overlay."""
        return self.folder / "disk"

    @property
    def shared(self) -> Path:
        """The folder that all machines see as /shared."""
        return self.disk / "shared"

    @property
    def laptop_home(self) -> Path:
        """Home folder of the user on the laptop."""
        return self.folder / "laptop"

    @property
    def key(self) -> Path:
        """Private key that the machines let in."""
        return self.laptop_home / ".ssh" / "id_ed25519"

    def address(self, name: str) -> str:
        """Address of a machine."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def open(self) -> None:
        """Make the image, the network and all machines."""
        self.key.parent.mkdir(parents=True, exist_ok=True)
        self.key.parent.chmod(0o700)
        self.disk.mkdir(exist_ok=True)
        _check("mount", "-t", "tmpfs", "-o", "size=10g,mode=755", "beamclip-machines", self.disk)
        self.shared.mkdir()
        if not self.key.exists():
            _check("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        (self.key.parent / "config").write_text(
            "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        )
        self._make_image()
        self._make_network()
        hosts = [f"{self.address(name)} {name}" for name in self.names]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, f"{LAPTOP} laptop", ""]))
        for name in self.names:
            self.start(name)

    def close(self) -> None:
        """End all machines and everything in them, and remove what was made."""
        # Not to be interrupted half-way: whoever stops the test may signal its whole group twice.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for name in (*self.names, "laptop"):
            for pid in _run("ip", "netns", "pids", f"bc-{name}").stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", f"bc-{name}")
        for process in self.processes.values():
            process.wait()
        _run("umount", "-l", self.disk)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start a machine, and return when it can be logged in to."""
        space = ("ip", "netns", "exec", f"bc-{name}", "unshare", "--mount", "--pid", "--uts", "--ipc")
        init = Path(__file__).with_name("machine_init.sh")
        where = (self.disk / name, self.disk / "base", self.shared, self.folder / "hosts")
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*space, "--fork", "--kill-child", init, name, *where],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        until = time.monotonic() + 30
        while self.on(name, "true", check=False).returncode:
            if time.monotonic() > until:
                raise RuntimeError(f"{name} does not come up: {(self.folder / f'{name}.log').read_text()}")
            time.sleep(0.1)

    def end(self, name: str) -> None:
        """End a machine at once, as when its power is lost."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def cut(self, name: str, *, down: bool) -> None:
        """Take the cable out of a machine, or put it back."""
        _check(
            "ip", "netns", "exec", "bc-laptop", "ip", "link", "set", f"bc-{name}", "down" if down else "up"
        )

    def on(
        self, name: str, line: str, *, check: bool = True, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell line on a machine, by ssh as its user."""
        ssh = [
            "ssh",
            "-q",
            "-F",
            str(self.key.parent / "config"),
            "-i",
            str(self.key),
            f"{USER}@{self.address(name)}",
        ]
        return self.laptop([*ssh, line], check=check, timeout=timeout)

    def laptop_words(self, words: list[str]) -> list[str]:
        """The words of a command, to be run on the laptop."""
        return ["ip", "netns", "exec", "bc-laptop", *words]

    def laptop_environment(self) -> dict[str, str]:
        """Environment of a command on the laptop."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "BEAMCLIP_"))
        }
        return {**kept, "HOME": str(self.laptop_home), "RAY_USAGE_STATS_ENABLED": "0", **self.variables}

    def laptop(
        self, words: list[str], *, check: bool = True, timeout: float = 300, cwd: Path = ROOT
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the laptop; its two outputs are one."""
        done = subprocess.run(
            self.laptop_words(words),
            env=self.laptop_environment(),
            cwd=cwd,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout}")
        return done

    def _make_image(self) -> None:
        """Make the layer that all machines have over this one's root: a user, sshd, and the packages."""
        base, work, root = (self.disk / name for name in ("base", "base-work", "base-root"))
        for path in (base, work, root):
            path.mkdir()
        _check("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={base},workdir={work}", root)
        try:
            _check("mount", "--rbind", "/dev", root / "dev")
            _check("mount", "--make-rslave", root / "dev")
            _check("mount", "-t", "proc", "proc", root / "proc")
            environment = {"SITE": next((ROOT / ".venv/lib").glob("python3.*/site-packages"))}
            environment |= {
                "SOURCE": ROOT,
                "KEY": self.key.with_suffix(".pub").read_text().strip(),
                "HOME": HOME,
            }
            _check("chroot", root, "/bin/bash", "-euo", "pipefail", "-c", _IMAGE, env=environment)
        finally:
            for name in ("proc", "dev"):
                _run("umount", "-l", root / name)
            _run("umount", "-l", root)

    def _make_network(self) -> None:
        _check("ip", "netns", "add", "bc-laptop")
        on_laptop = ("ip", "netns", "exec", "bc-laptop", "ip")
        for words in (
            "link set lo up",
            "link add bc-bridge type bridge",
            f"addr add {LAPTOP}/24 dev bc-bridge",
            "link set bc-bridge up",
        ):
            _check(*on_laptop, *words.split())
        for name in self.names:
            _check("ip", "netns", "add", f"bc-{name}")
            _check(
                "ip",
                "link",
                "add",
                f"bc-{name}",
                "netns",
                "bc-laptop",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                f"bc-{name}",
            )
            _check(*on_laptop, "link", "set", f"bc-{name}", "master", "bc-bridge", "up")
            on_machine = ("ip", "netns", "exec", f"bc-{name}", "ip")
            for words in (
                "link set lo up",
                f"addr add {self.address(name)}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {LAPTOP}",
            ):
                _check(*on_machine, *words.split())


_IMAGE = textwrap.dedent(
    f"""
    useradd --create-home --shell /bin/bash {USER} 2>/dev/null || true
    usermod -p '*' {USER}
    echo '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/90-{USER}
    chmod 440 /etc/sudoers.d/90-{USER}
    mkdir -p $HOME/.ssh /run/sshd
    echo "$KEY" > $HOME/.ssh/authorized_keys
    chmod 700 $HOME/.ssh
    ssh-keygen -A > /dev/null
    rm -rf /etc/ssh/sshd_config.d /root/.ssh /root/.ray
    printf '%s\\n' 'PermitRootLogin no' 'PasswordAuthentication no' 'UsePAM no' 'MaxStartups 100' \
        'MaxSessions 100' 'Subsystem sftp internal-sftp' > /etc/ssh/sshd_config
    {PYTHON} -m venv $HOME/beamclip-env
    site=$(echo $HOME/beamclip-env/lib/python3.*/site-packages)
    echo "$SITE" > $site/packages-of-the-checkout.pth
    for name in ray mlflow beamclip; do
        case $name in
            ray) from=ray.scripts.scripts function=main;;
            mlflow) from=mlflow.cli function=cli;;
            beamclip) from=beamclip.commands.main function=main;;
        esac
        printf '#!%s\\nimport sys\\nfrom %s import %s\\nsys.exit(%s())\\n' \
            $HOME/beamclip-env/bin/python $from $function $function > $HOME/beamclip-env/bin/$name
        chmod 755 $HOME/beamclip-env/bin/$name
    done
    cat $SOURCE/constraints.txt $SOURCE/pyproject.toml | sha256sum | cut -d' ' -f1 \
        > $HOME/beamclip-env/.beamclip-installed
    chown -R {USER}:{USER} $HOME
    """
)


def _run(*words: object, env: dict[str, object] | None = None) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, **{name: str(value) for name, value in (env or {}).items()}}
    variables["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, env=variables)


def _check(*words: object, env: dict[str, object] | None = None) -> None:
    done = _run(*words, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))[:200]}: {done.stderr.strip()}")


def _said(*words: str) -> str:
    return _run(*words).stdout
