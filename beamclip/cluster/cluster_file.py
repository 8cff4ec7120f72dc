"""Read a cluster file, the YAML that `ray up` takes, and refuse what Ray would refuse, in one line."""

import contextlib
import copy
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from beamclip.errors import InputError
from beamclip.files import parse_yaml, read_text
from beamclip.places import one_line

_PLACEHOLDER = re.compile(
    # Besides YOUR-BUCKET: the addresses that RFC 5737 reserves for documentation.
    r"YOUR-[A-Z]+|(?<![\d.])(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d+(?:/\d+)?"
)


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file that fits Ray's schema."""

    path: Path
    content: dict[str, Any]
    placeholders: tuple[str, ...]
    """What is still to be filled in, each with its line: `line 12: YOUR-BUCKET`."""

    @property
    def provider(self) -> dict[str, Any]:
        """The settings of the machines' provider."""
        settings: dict[str, Any] = self.content["provider"]
        return settings


@dataclass(frozen=True)
class Part:
    """A mapping in a cluster file that Ray's schema lets pass unread."""

    content: dict[str, Any]
    where: str
    """File and path of keys, for messages."""

    def text(self, key: str) -> str | None:
        """Return a text, or None if there is none."""
        return self._typed(key, str, "text")

    def part(self, key: str) -> "Part":
        """Return a mapping; an empty one if there is none."""
        return Part(self._typed(key, dict, "mapping") or {}, f"{self.where}.{key}")

    def parts(self, key: str) -> "list[Part]":
        """Return a list of mappings; an empty one if there is none."""
        where = f"{self.where}.{key}"
        listed = self._typed(key, list, "list") or []
        for item in listed:
            if not isinstance(item, dict):
                raise InputError(f"{where}: {item!r} is no mapping.")
        return [Part(item, where) for item in listed]

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; an empty one if there is none."""
        return list(map(str, self._typed(key, list, "list") or []))

    def port(self, key: str) -> int:
        """Return a number that has to be there."""
        number = self.needed(key)
        if not isinstance(number, int):
            raise InputError(f"{self.where}.{key}: {number!r} is no number.")
        return number

    def needed(self, key: str) -> Any:
        """Return what has to be there."""
        if self.content.get(key) is None:
            raise InputError(f"{self.where}: {key} is missing.")
        return self.content[key]

    def _typed(self, key: str, kind: type, name: str) -> Any:
        value = self.content.get(key)
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{self.where}.{key}: {value!r} is no {name}.")
        return value


def read_cluster_file(path: Path) -> ClusterFile:
    """Return the content of a cluster file.

    Raises:
        InputError: it cannot be read, is no YAML, or is not what Ray takes.
    """
    text = read_text(path)
    parse_yaml(text, str(path))  # names the line of a repeated key, which yaml.safe_load accepts
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: this is not valid YAML: {one_line(error)}.") from error
    _check_schema(path, content)
    _check_by_ray(path, content)
    return ClusterFile(path, content, tuple(_placeholders(text)))


def _check_schema(path: Path, content: Any) -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    error = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(schema).iter_errors(content))
    if error:
        where = ".".join(map(str, error.absolute_path)) or "top level"
        raise InputError(f"{path}: {where}: {' '.join(error.message.split())[-200:]}.")


def _check_by_ray(path: Path, content: dict[str, Any]) -> None:
    """Refuse what the schema cannot express, such as a head type that is not among the types."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it warns of every file_mount that is a file
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            validate_config(prepare_config(copy.deepcopy(content)))
    except Exception as error:  # ValueError, KeyError, NotImplementedError, and click's for what it printed
        printed = " ".join(said.getvalue().split()) if "cli_logger" in str(error) else ""
        raise InputError(f"{path}: Ray refuses it: {(printed or one_line(error)).rstrip('.')}.") from error
    finally:
        logging.disable(disabled)


def _placeholders(text: str) -> Iterator[str]:
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken):
            for found in _PLACEHOLDER.findall(token.value):
                yield f"line {token.start_mark.line + 1}: {found}"
