"""Similarities of images and text anchors, by teacher and student, in an order that shows their pattern."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

from beamclip.plots.kept import read_kept, write_kept

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """Cosine similarities of n images and the anchors of their n classes, in one order for both."""

    names: tuple[str, ...]
    """Names of the classes; image and anchor i are of class i."""
    teacher: Floats
    """[n, n]; rows are images, columns anchors."""
    student: Floats
    """[n, n], of the student's embeddings and the same anchors."""

    @property
    def correlation(self) -> float | None:
        """Pearson correlation of both matrices; None if one is constant."""
        first, second = self.teacher.ravel(), self.student.ravel()
        if first.std() == 0 or second.std() == 0:
            return None
        return float(np.corrcoef(first, second)[0, 1])

    @property
    def difference(self) -> float:
        """Mean absolute difference of both matrices."""
        return float(np.abs(self.student - self.teacher).mean())


def ordered_similarity(names: Sequence[str], teacher: Floats, student: Floats, anchors: Floats) -> Similarity:
    """Order images and anchors alike, so that classes with close anchors are neighbours.

    The order is that of the leaves of a hierarchical clustering (average linkage) of the anchors, turned so
    that neighbours are as close as they can be (Bar-Joseph, Gifford and Jaakkola, Bioinformatics 2001). It
    depends neither on the images nor on the student.

    Args:
        names: n class names.
        teacher, student: [n, n] cosine similarities; rows are images, columns anchors.
        anchors: [n, D] the anchors, unit length.

    Raises:
        ValueError: the counts do not agree, or there is no class.
    """
    count = len(names)
    if (
        teacher.shape != (count, count)
        or student.shape != (count, count)
        or len(anchors) != count
        or not count
    ):
        raise ValueError(
            f"ordered_similarity: {count} names need {count} anchors, 1 or more, and matrices of "
            f"{[count, count]}; there are {len(anchors)} anchors, teacher's is {list(teacher.shape)}, "
            f"student's {list(student.shape)}"
        )
    order = _seriated(anchors)
    both = (values.astype(np.float64)[np.ix_(order, order)] for values in (teacher, student))
    return Similarity(tuple(names[i] for i in order), *both)


def grouped_classes(anchors: Floats, groups: int, members: int) -> list[int]:
    """Choose classes that form groups: seeds that are far apart, and the nearest neighbours of each.

    The first seed is class 0; each further one is the class whose nearest chosen seed is farthest.

    Args:
        anchors: [K, D] one anchor for each class, unit length.
        groups: number of seeds.
        members: classes of a group, the seed among them.

    Returns:
        Distinct indices, at most groups x members of them; all K in order if there are no more.
    """
    if len(anchors) <= groups * members:
        return list(range(len(anchors)))
    cosines = anchors @ anchors.T
    seeds = [0]
    while len(seeds) < groups:
        seeds.append(int(cosines[seeds].max(axis=0).argmin()))
    chosen: list[int] = []
    for seed in seeds:
        near = [int(i) for i in np.argsort(-cosines[seed], kind="stable") if i != seed and i not in seeds]
        chosen += [seed, *[i for i in near if i not in chosen][: members - 1]]
    return chosen


def write_similarity(similarity: Similarity, path: Path) -> None:
    """Write similarities as a JSON file, whose folder is made."""
    matrices = {name: getattr(similarity, name).round(5).tolist() for name in ("teacher", "student")}
    write_kept({"names": similarity.names, **matrices}, path)


def read_similarity(path: Path) -> Similarity:
    """Read what `write_similarity` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    return read_kept(path, _similarity, "a file of similarities")


def _similarity(content: Any) -> Similarity:
    names = tuple(map(str, content["names"]))
    matrices = [np.array(content[name], dtype=np.float64) for name in ("teacher", "student")]
    if any(matrix.shape != (len(names), len(names)) for matrix in matrices):
        raise ValueError("the matrices do not fit the names")
    return Similarity(names, *matrices)


def _seriated(anchors: Floats) -> list[int]:
    if len(anchors) < 3:
        return list(range(len(anchors)))
    distances = np.clip(1 - anchors.astype(np.float64) @ anchors.T.astype(np.float64), 0, None)
    np.fill_diagonal(distances, 0)
    condensed = squareform(distances, checks=False)
    return [int(i) for i in leaves_list(linkage(condensed, "average", optimal_ordering=True))]
