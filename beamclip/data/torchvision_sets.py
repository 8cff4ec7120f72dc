"""Labelled data sets of torchvision by name, as rows of the schema of all shards.

    torchvision:FashionMNIST/test?root=/data             class, split, and the folder that holds its files
    torchvision:EuroSAT?root=/data                       a data set without splits
    torchvision:EMNIST/test?root=/data&split=letters     further arguments of its constructor

Without `root`, the folder is that of BEAMCLIP_TORCHVISION_ROOT. Any class of torchvision.datasets will do
whose items are an image and the number of a class. Nothing is ever downloaded, and nothing unpickled but
arrays: CIFAR's files are pickles, which a restricted reader reads; LSUN, whose index may hold anything, is
refused.

Files of images are handed on as they are; what torchvision decodes or holds as an array becomes a PNG.
"""

import inspect
import io
import os
import pickle
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from beamclip.data.sample_rows import Columns, Pending, Row
from beamclip.data.shard_file import Rows, StoreError
from beamclip.errors import InputError
from beamclip.places import TORCHVISION
from beamclip.spelling import did_you_mean

ROOT_VARIABLE = "BEAMCLIP_TORCHVISION_ROOT"

ROWS_PER_SHARD = 2048
"""Rows of a data set that count as one shard, so that several processes can read it."""

_SPLIT_ARGUMENTS = ("train", "split", "version")
"""What constructors call the split, the first of them that a class has."""

_OURS = frozenset({"root", "download", "loader", "transform", "target_transform", "transforms"})
"""Arguments that are no business of an address."""

_ARRAY_PARTS = frozenset(
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))
) | {("_codecs", "encode")}
"""All that the pickle of an array names."""


@dataclass(frozen=True)
class SetAddress:
    """A data set of torchvision, as an address names it."""

    name: str
    split: str
    """Empty where the address names none."""
    root: str
    """Absolute path; empty where neither the address nor the environment names one."""
    arguments: Mapping[str, str]

    @property
    def title(self) -> str:
        """The address without its arguments."""
        return f"{TORCHVISION}{self.name}/{self.split}" if self.split else f"{TORCHVISION}{self.name}"

    @property
    def address(self) -> str:
        """The address with its root, wherever it was looked up."""
        return f"{self.title}?{urlencode({'root': self.root, **self.arguments}, safe='/')}"


def is_torchvision(address: str) -> bool:
    """Whether an address names a data set of torchvision."""
    return address.startswith(TORCHVISION)


def parse_address(address: str) -> SetAddress:
    """The parts of an address; `root` from the environment if the address has none."""
    place, _, query = address.removeprefix(TORCHVISION).partition("?")
    name, _, split = place.strip("/").partition("/")
    arguments = dict(parse_qsl(query, keep_blank_values=True))
    root = arguments.pop("root", "") or os.environ.get(ROOT_VARIABLE, "").strip()
    return SetAddress(name, split, str(Path(root).expanduser().absolute()) if root else "", arguments)


def count_rows_of_set(address: SetAddress) -> int:
    """Number of samples.

    Raises:
        InputError: torchvision has no such data set, its files are not there, or its items are no images with
            the number of a class.
    """
    data = open_set(address.address)
    if not len(data):
        raise InputError(f"{address.title}: holds no image in {address.root}. Give another split or root.")
    try:
        item = data[0]
    except Exception as error:  # torchvision lists files without looking at them
        raise InputError(
            f"{address.title}: its first sample cannot be read ({_one_line(error)}). Bring all files of the "
            f"data set to {address.root}."
        ) from error
    labelled = isinstance(item, tuple) and len(item) == 2 and _label(item[1]) is not _NO_LABEL
    if not labelled or not _is_image(item[0]):
        raise InputError(
            f"{address.title}: its items are {_described(item)}, not an image and the number of a class. "
            "Give another data set."
        )
    return len(data)


def class_names(address: SetAddress) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers, as torchvision knows them; empty if it does not.

    Of several names of a class the first counts, and underscores count as spaces.

    Raises:
        InputError: see `count_rows_of_set`.
    """
    data = open_set(address.address)
    names = getattr(data, "classes", None) or getattr(data, "categories", None) or ()
    firsts = [name if isinstance(name, str) else next(iter(name), "") for name in names]
    return tuple(str(name).replace("_", " ").strip() for name in firsts)


def read_set(address: str, first: int, columns: Columns, rows: Rows) -> Iterator[Pending]:
    """Yield the samples of a data set with these row numbers; their keys are its name and their numbers.

    Args:
        address: of a SetAddress.
        first: number in the data set of the row 0.

    Raises:
        StoreError: its files are not on this machine.
    """
    try:
        data = open_set(address)
    except InputError as error:
        raise StoreError(FileNotFoundError(str(error))) from error
    title = parse_address(address).title.removeprefix(TORCHVISION)
    for row in rows:
        number = first + int(row)
        if number < len(data):
            key = f"{title}/{number}"
            yield key, partial(_row, data, number, key, columns)


def _row(data: Any, number: int, key: str, columns: Columns) -> Row:
    image, label = data[number]
    found = _label(label)
    return {
        "key": key,
        "image": _encoded(image),
        "caption": None,
        "texts": [],
        "label": found if columns.label and isinstance(found, str) else None,
        "fields": "{}" if columns.everything else None,
    }


_NO_LABEL = object()


def _label(value: Any) -> Any:
    """The number of a class as text, None for an unlabelled sample, _NO_LABEL for anything else."""
    if value is None:
        return None
    try:
        return str(value.__index__())
    except (AttributeError, TypeError):
        return _NO_LABEL


def _is_image(value: Any) -> bool:
    from PIL.Image import Image

    return isinstance(value, Image | bytes | str | Path)


def _described(item: Any) -> str:
    parts = item if isinstance(item, tuple) else (item,)
    return f"({', '.join(type(part).__name__ for part in parts)})"


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return _read_file(image)
    content = io.BytesIO()
    image = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def _read_file(path: str | Path) -> bytes:
    return Path(path).read_bytes()


@lru_cache(maxsize=4)
def open_set(address: str) -> Any:
    """Construct a data set of torchvision, once in each process.

    Args:
        address: of a SetAddress, with its root.

    Raises:
        InputError: torchvision has no such data set, or its files are not there.
    """
    named = parse_address(address)
    kind = _class(named)
    arguments = _arguments(named, kind)
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{named.title}: torchvision refuses it: {_one_line(error)}") from error
    except (RuntimeError, OSError, KeyError, ImportError) as error:
        if isinstance(error, ImportError) or isinstance(error.__context__, ImportError):
            raise InputError(f"{named.title}: a package is missing: {_one_line(error)}.") from error
        raise InputError(
            f"{named.title}: its files are not in {_looked_in(error, kind, named.root)}, or they are damaged "
            f"({_one_line(error)}). beamclip downloads no data set. {_advice(kind, arguments)}"
        ) from error


def _class(named: SetAddress) -> Any:
    from torchvision import datasets

    known = {
        name: kind
        for name in datasets.__all__
        if inspect.isclass(kind := getattr(datasets, name)) and kind is not datasets.VisionDataset
    }
    if named.name not in known:
        advice = "The names are those of torchvision.datasets, as in torchvision:FashionMNIST/test."
        raise InputError(
            f"{named.title}: torchvision has no data set {named.name!r}. "
            f"{did_you_mean(named.name, known, advice)}"
        )
    kind = known[named.name]
    module = sys.modules[kind.__module__]
    if module is datasets.cifar:
        # Pickles may run any code when they are read. torchvision has compared these with their checksums,
        # and from here on this process reads nothing but arrays, lists and texts from them.
        module.pickle = SimpleNamespace(load=_load_arrays)
    elif hasattr(module, "pickle"):
        raise InputError(
            f"{named.title}: torchvision would unpickle files of this data set, which may run any code. "
            "Save it as folders of images or as tars."
        )
    return kind


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise ValueError(f"a pickle that holds {module}.{name}, not only arrays")
        return super().find_class(module, name)


def _load_arrays(file: Any, *, encoding: str = "ASCII") -> Any:
    return _ArrayUnpickler(file, encoding=encoding).load()


def _arguments(named: SetAddress, kind: Any) -> dict[str, Any]:
    """What a class is constructed with.

    Raises:
        InputError: the root or the split is missing, or an argument is unknown.
    """
    parameters = _parameters(kind)
    unknown = [name for name in named.arguments if name not in parameters or name in _OURS]
    if unknown:
        known = [name for name in parameters if name not in _OURS]
        advice = f"Known arguments: {', '.join(['root', *known])}."
        raise InputError(
            f"{named.title}: {unknown[0]} is no argument. {did_you_mean(unknown[0], known, advice)}"
        )
    if "root" in parameters and not named.root:
        raise InputError(
            f"{named.title}: nobody says where its files are. Give their folder, {named.title}?root=FOLDER, "
            f"or set {ROOT_VARIABLE}."
        )
    fixed = {"root": named.root, "download": False, "loader": _read_file}
    arguments = {name: value for name, value in fixed.items() if name in parameters}
    arguments |= _split(named, parameters)
    arguments |= {name: _value(text, parameters[name]) for name, text in named.arguments.items()}
    required = [name for name, each in parameters.items() if each.default is each.empty]
    missing = [name for name in required if name not in arguments]
    if missing:
        raise InputError(
            f"{named.title}: torchvision asks for {missing[0]!r}. Give it: "
            f"{named.title}?root={named.root}&{missing[0]}=..."
        )
    return arguments


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """All arguments of a constructor, those that it hands on to its base class among them."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = [*inspect.signature(base.__init__).parameters.values()][1:]
        for each in own:
            if each.kind is not each.VAR_KEYWORD:
                found.setdefault(each.name, each)
        if all(each.kind is not each.VAR_KEYWORD for each in own):
            break
    return found


def _split(named: SetAddress, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    argument = next((name for name in _SPLIT_ARGUMENTS if name in parameters), None)
    if argument is None:
        if named.split:
            raise InputError(f"{named.title}: {named.name} has no splits. Leave out /{named.split}.")
        return {}
    if not named.split:
        example = "2021_valid" if argument == "version" else "test"
        raise InputError(f"{named.title}: no split is named. Give one, as in {named.title}/{example}.")
    if argument != "train":
        return {argument: named.split}
    if named.split not in ("train", "test"):
        raise InputError(f"{named.title}: {named.name} has the splits train and test. Give one of them.")
    return {"train": named.split == "train"}


def _value(text: str, parameter: inspect.Parameter) -> Any:
    if isinstance(parameter.default, str):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def _looked_in(error: BaseException, kind: Any, root: str) -> str:
    """The folder in which torchvision looked, as far as the object knew that could not be made."""
    places = [root]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get("self")
        if isinstance(made, kind):
            places += [str(each) for each in vars(made).values() if isinstance(each, str | Path)]
            places.append(str(getattr(made, "raw_folder", "")))
            places.append(os.path.join(root, str(getattr(made, "base_folder", ""))))
    return max((place.rstrip("/") for place in places if place.startswith(root)), key=len)


def _advice(kind: Any, arguments: Mapping[str, Any]) -> str:
    if "download" not in arguments:
        return "Nor does torchvision download this one: bring its files."
    given = ", ".join(
        f"{name}={value!r}" for name, value in arguments.items() if name not in ("download", "loader")
    )
    name = kind.__name__
    return f'This does: python -c "from torchvision.datasets import {name} as D; D({given}, download=True)"'


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()).split(" You can use download=True")[0]
    return said[:200].rstrip(".") or type(error).__name__
