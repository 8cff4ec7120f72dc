"""Ask every node of a cluster, before anything is loaded, whether it sees what the command sees.

A path that only one machine has is the most common mistake on a cluster, and a costly one: workers would
start, load a teacher, and fail one after the other, or write where nobody looks. So a task on each node looks
at some files of the data, reads a note that the command has left where it will write, and writes one itself.
It also says which versions it runs. All of this takes seconds.
"""

import contextlib
import importlib.metadata
import logging
import platform
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import fsspec

import beamclip
from beamclip.addresses import without_secrets
from beamclip.cluster.session import cluster_address, ray_session
from beamclip.errors import InputError
from beamclip.places import absolute, is_address, one_line

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 10.0
"""Seconds that the nodes have to answer, all together."""

_DISTRIBUTIONS = ("torch", "ray", "open_clip_torch", "pyarrow")


@dataclass(frozen=True)
class SharedPlaces:
    """What several machines of a command read and write."""

    read: tuple[tuple[str, str], ...] = ()
    """Option and file, some files of each data set."""
    written: tuple[tuple[str, str], ...] = ()
    """Option and folder."""


NO_PLACES = SharedPlaces()


@dataclass(frozen=True)
class _Question:
    """What a node is asked, as plain data."""

    sizes: tuple[tuple[str, str, int], ...]
    """Option, file or folder, bytes; -1 for a folder."""
    notes: tuple[tuple[str, str, str], ...]
    """Option, folder, content of the note in it, whose name is the content too."""
    versions: Mapping[str, str]


def some_files(option: str, paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The first file of a data set, one in the middle, and the last, each with the option that names it."""
    places = sorted({0, len(paths) // 2, len(paths) - 1}) if paths else ()
    return tuple((option, absolute(paths[place])) for place in places)


def ask_nodes(places: SharedPlaces) -> None:
    """Ask each other node of a cluster that was joined; in a Ray of the command's own, do nothing.

    Raises:
        InputError: a node runs other versions, or does not see what this machine sees; one line that names
            the option, the place and the node.
    """
    if not cluster_address():
        return
    import ray

    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    if not others:
        return
    with _notes(places.written) as notes:
        question = _Question(tuple(_with_sizes(places.read)), notes, _versions())
        answers = _ask(others, question)
    problems = [(name, answer) for name, answer in answers.items() if answer]
    if problems:
        (name, problem), more = problems[0], len(problems) - 1
        raise InputError(without_secrets(f"node {name}{f' and {more} more' if more else ''}: {problem}"))


def ask_cluster(places: SharedPlaces) -> None:
    """Join the cluster of RAY_ADDRESS, if there is one, ask its nodes, and leave it again.

    Raises:
        InputError: as `ask_nodes`, or the cluster cannot be joined.
    """
    if cluster_address():
        with ray_session():
            ask_nodes(places)


def _ask(nodes: Iterable[dict[str, Any]], question: _Question) -> dict[str, str | None]:
    """Return what is wrong on each node that answers in time, by its address; others are logged."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(problem_here)
    asked = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[task.options(scheduling_strategy=strategy).remote(question)] = node["NodeManagerAddress"]
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_WITHIN_S)
    for reference in late:
        log.warning("node %s does not answer within %.0f s; going on", asked[reference], ANSWER_WITHIN_S)
    answers: dict[str, str | None] = {}
    for reference in done:
        try:
            answers[asked[reference]] = ray.get(reference)
        except Exception as error:  # its process, its packages or the node itself
            answers[asked[reference]] = f"cannot run beamclip: {_cause(error)}"
    return answers


def problem_here(question: _Question) -> str | None:
    """Return what is wrong on the machine that runs this, in one line; None if nothing is."""
    for name, version in _versions().items():
        wanted = question.versions.get(name)
        if version != wanted:
            return (
                f"has {name} {version}, and this machine has {wanted}. Give all nodes the same set: "
                "make up installs it, and ends what runs on the cluster."
            )
    for option, path, size in question.sizes:
        problem = _problem_of_file(path, size)
        if problem:
            return f"{option}: {path} {problem}. {_advice(option, path)}"
    for option, folder, note in question.notes:
        problem = _problem_of_folder(folder, note)
        if problem:
            return f"{option}: {folder} {problem}. {_advice(option, folder)}"
    return None


def _problem_of_file(path: str, size: int) -> str | None:
    try:
        fs, inside = fsspec.core.url_to_fs(path)
        found = fs.info(inside)
    except FileNotFoundError:
        return "is not there"
    except Exception as error:  # each store has errors of its own
        return f"cannot be read there ({one_line(error)})"
    there = _bytes(found)
    return None if there == size else f"has {there:,} bytes there and {size:,} here"


def _problem_of_folder(folder: str, note: str) -> str | None:
    try:
        fs, inside = fsspec.core.url_to_fs(folder)
        if fs.cat_file(posixpath.join(inside, note)) != note.encode():
            return "is another folder there"
        own = posixpath.join(inside, f"{note}-{uuid4().hex}")
        fs.pipe_file(own, b"")
        fs.rm_file(own)
    except FileNotFoundError:
        return "is another folder there"
    except Exception as error:
        return f"cannot be written to there ({one_line(error)})"
    return None


def _advice(option: str, place: str) -> str:
    if is_address(place):
        return "Nodes need the right to it, and the package of its store: pip install s3fs, or gcsfs."
    return f"Give {option} an address such as s3://bucket/..., or a folder that all nodes mount at this path."


@contextlib.contextmanager
def _notes(folders: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str, str], ...]]:
    """Leave a note in each folder while the nodes are asked.

    Raises:
        InputError: a folder cannot be written to from here.
    """
    left = []
    try:
        for option, folder in folders:
            note = f".note-{uuid4().hex}"
            try:
                fs, inside = fsspec.core.url_to_fs(folder)
                fs.makedirs(inside, exist_ok=True)
                fs.pipe_file(posixpath.join(inside, note), note.encode())
            except Exception as error:
                raise InputError(
                    without_secrets(f"{option}: {folder} cannot be written to ({one_line(error)}).")
                ) from error
            left.append((option, folder, note))
        yield tuple(left)
    finally:
        for _, folder, note in left:
            with contextlib.suppress(Exception):
                fs, inside = fsspec.core.url_to_fs(folder)
                fs.rm_file(posixpath.join(inside, note))


def _with_sizes(files: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    for option, path in files:
        # What cannot be read here is for the listing to say.
        with contextlib.suppress(Exception):
            fs, inside = fsspec.core.url_to_fs(path)
            yield option, path, _bytes(fs.info(inside))


def _bytes(info: Mapping[str, Any]) -> int:
    return int(info["size"]) if info["type"] == "file" else -1


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version().rpartition(".")[0], "beamclip": beamclip.__version__}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cause(error: BaseException) -> str:
    said = str(getattr(error, "cause", None) or error).strip().splitlines()
    return said[-1][:300] if said else type(error).__name__
