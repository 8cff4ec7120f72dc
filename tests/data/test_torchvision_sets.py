"""Data sets of torchvision by name: rows as torchvision gives them, no download, no code in a pickle."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from beamclip.commands.options import ScoringConfig
from beamclip.config import with_absolute_paths
from beamclip.data import torchvision_sets
from beamclip.data.label_names import NumberedClasses, numbered_classes
from beamclip.data.listing import list_labelled, list_shards
from beamclip.data.shards import Columns, MissingShardError, Row, iterate_rows
from beamclip.errors import InputError
from beamclip.places import absolute, is_address

DIGITS = 5


@pytest.fixture(autouse=True)
def _no_kept_sets() -> None:
    torchvision_sets.open_set.cache_clear()


def write_idx(path: Path, values: np.ndarray) -> None:
    """As http://yann.lecun.com/exdb/mnist lays out arrays of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


def write_mnist(root: Path, name: str = "KMNIST", count: int = DIGITS) -> np.ndarray:
    """Write both splits; return the images of the test split, uint8 [count, 28, 28]."""
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for split, pixels in (("t10k", images), ("train", images[:2])):
        write_idx(root / name / "raw" / f"{split}-images-idx3-ubyte", pixels)
        write_idx(root / name / "raw" / f"{split}-labels-idx1-ubyte", labels[: len(pixels)])
    return images


def read(address: str, columns: Columns = Columns(label="label")) -> list[Row]:  # noqa: B008
    shards = list_labelled(address)
    return [row for shard in shards for row in iterate_rows(shard, columns, range(shard.samples))]


def pixels(row: Row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"])))


def test_arrays_are_rows_with_the_same_pixels_labels_and_names(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    rows = read(f"torchvision:KMNIST/test?root={tmp_path}")
    assert [(row["key"], row["label"], row["problem"]) for row in rows] == [
        (f"KMNIST/test/{number}", str(number), None) for number in range(DIGITS)
    ]
    assert np.array_equal(np.stack([pixels(row) for row in rows]), images)
    assert len(read(f"torchvision:KMNIST/train?root={tmp_path}")) == 2
    classes = numbered_classes(f"torchvision:KMNIST/test?root={tmp_path}", "label")
    assert classes == NumberedClasses(("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"))


def test_a_large_set_is_several_shards_that_hold_each_row_once(tmp_path: Path, monkeypatch) -> None:
    write_mnist(tmp_path, count=23)
    monkeypatch.setattr("beamclip.data.listing.ROWS_PER_SHARD", 10)
    shards = list_shards(f"torchvision:KMNIST/test?root={tmp_path}")
    assert [shard.samples for shard in shards] == [10, 10, 3]
    names = [shard.name for shard in shards]
    assert names == ["KMNIST-test-00000000", "KMNIST-test-00000010", "KMNIST-test-00000020"]
    keys = [row["key"] for shard in shards for row in iterate_rows(shard, Columns(), range(shard.samples))]
    assert keys == [f"KMNIST/test/{number}" for number in range(23)]
    second = next(iterate_rows(shards[1], Columns(), range(4, 5)))
    assert second["key"] == "KMNIST/test/14"


def test_files_of_images_are_handed_on_byte_by_byte(tmp_path: Path) -> None:
    contents = {}
    for number, name in enumerate(("AnnualCrop", "Sea_Lake")):
        file = io.BytesIO()
        Image.new("RGB", (9, 7), (number, 80, 200)).save(file, "jpeg")
        path = tmp_path / "eurosat" / "2750" / name / f"{name}_1.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(contents.setdefault(str(number), file.getvalue()))
    address = f"torchvision:EuroSAT?root={tmp_path}"
    assert {row["label"]: row["image"] for row in read(address)} == contents
    assert numbered_classes(address, "label") == NumberedClasses(("AnnualCrop", "Sea Lake"))


def test_a_first_image_that_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "eurosat" / "2750" / "Forest" / "Forest_1.jpg"
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match=rf"EuroSAT: its first sample cannot be read .* to {tmp_path}"):
        list_labelled(f"torchvision:EuroSAT?root={tmp_path}")


def write_cifar(root: Path, monkeypatch, test_batch: Any) -> None:
    """CIFAR-10's files with other content, and torchvision told to expect it."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    train = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
    contents = {
        "data_batch_1": train,
        "test_batch": test_batch,
        "batches.meta": {"label_names": ["cat", "dog"]},
    }
    checksums = {}
    for name, content in contents.items():
        # Protocol 2 is what Python 2 wrote.
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": checksums["batches.meta"]})


def test_arrays_in_pickles_are_read(tmp_path: Path, monkeypatch) -> None:
    values = np.random.default_rng(1).integers(0, 256, (3, 3072)).astype(np.uint8)
    write_cifar(tmp_path, monkeypatch, {"data": values, "labels": [1, 0, 1]})
    rows = read(f"torchvision:CIFAR10/test?root={tmp_path}")
    assert [row["label"] for row in rows] == ["1", "0", "1"]
    expected = values.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(np.stack([pixels(row) for row in rows]), expected)


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch) -> None:
    proof = tmp_path / "proof"
    write_cifar(tmp_path, monkeypatch, {"data": _Code(proof), "labels": [0]})
    with pytest.raises(InputError, match=r"a pickle that holds .*, not only arrays"):
        list_labelled(f"torchvision:CIFAR10/test?root={tmp_path}")
    assert not proof.exists()


def test_arguments_of_the_constructor_have_its_types(tmp_path: Path) -> None:
    assert len(read("torchvision:FakeData?size=3&num_classes=2")) == 3
    images = np.zeros((2, 28, 28), np.uint8)
    for name, values in (("images-idx3", images), ("labels-idx1", np.array([1, 26], np.uint8))):
        write_idx(tmp_path / "EMNIST" / "raw" / f"emnist-letters-test-{name}-ubyte", values)
    address = f"torchvision:EMNIST/test?root={tmp_path}&split=letters"
    assert [row["label"] for row in read(address)] == ["1", "26"]
    classes = numbered_classes(address, "label")
    assert classes is not None
    assert classes.names[26] == "z"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("torchvision:FashonMNIST/test?root=x", "no data set 'FashonMNIST'. Did you mean FashionMNIST?"),
        ("torchvision:?root=x", "no data set ''. The names are those of torchvision.datasets"),
        ("torchvision:KMNIST?root=x", "Give one, as in torchvision:KMNIST/test"),
        ("torchvision:KMNIST/val?root=x", "has the splits train and test"),
        ("torchvision:EuroSAT/test?root=x", "EuroSAT has no splits. Leave out /test"),
        ("torchvision:SVHN/tset?root=x", "Unknown value 'tset' for argument split"),
        ("torchvision:DTD/test?root=x&partiton=2", "partiton is no argument. Did you mean partition?"),
        (
            "torchvision:DTD/test?root=x&download=1",
            "download is no argument. Known arguments: root, split, part",
        ),
        ("torchvision:EMNIST/test?root=x", "asks for 'split'"),
        ("torchvision:KMNIST/test", "nobody says where its files are.* or set BEAMCLIP_TORCHVISION_ROOT"),
        (
            "torchvision:KMNIST/test?root=/nowhere",
            "not in /nowhere/KMNIST/raw, .*beamclip downloads no data set",
        ),
        ("torchvision:SEMEION?root=/nowhere", "not in /nowhere, .*beamclip downloads no data set"),
        ("torchvision:ImageNet/val?root=/nowhere", "Nor does torchvision download this one"),
        ("torchvision:LSUN/test?root=x", "would unpickle files of this data set"),
        ("torchvision:FakeData?size=0", "holds no image"),
        (
            "torchvision:MovingMNIST/test?root={root}",
            r"its items are \(Tensor\), not an image and the number",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, monkeypatch, address: str, said: str) -> None:
    monkeypatch.delenv("BEAMCLIP_TORCHVISION_ROOT", raising=False)
    (tmp_path / "MovingMNIST").mkdir()
    np.save(tmp_path / "MovingMNIST" / "mnist_test_seq.npy", np.zeros((20, 2, 8, 8), np.uint8))
    with pytest.raises(InputError, match=said) as caught:
        list_labelled(address.replace("{root}", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_root_may_be_named_once_for_all(tmp_path: Path, monkeypatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("BEAMCLIP_TORCHVISION_ROOT", str(tmp_path))
    shards = list_labelled("torchvision:KMNIST/test")
    # Processes on other nodes do not have the variable.
    assert shards[0].path == f"torchvision:KMNIST/test?root={tmp_path}"


def test_an_address_stays_what_it_is_but_for_a_relative_root(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_address("torchvision:KMNIST/test")
    assert absolute("torchvision:KMNIST/test") == "torchvision:KMNIST/test"
    address = "torchvision:EMNIST/test?root=data/here&split=letters"
    expected = f"torchvision:EMNIST/test?root={tmp_path}/data/here&split=letters"
    assert absolute(address) == expected
    assert with_absolute_paths(ScoringConfig(eval_data=address)).eval_data == expected


def test_files_that_are_not_on_a_node_are_a_missing_shard(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    shard = list_labelled(f"torchvision:KMNIST/test?root={tmp_path}")[0]
    torchvision_sets.open_set.cache_clear()
    (tmp_path / "KMNIST").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingShardError, match=r"not in .*/KMNIST/raw"):
        list(iterate_rows(shard, Columns(), range(2)))
