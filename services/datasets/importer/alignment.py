"""A label volume beside its image: whether both cover the same space, and turning labels that are stored otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput, TooLarge
from models.medical.volume import Volume

MOST_APART: Final = 0.1
"""Voxels of the mask by which a corner may miss that of the image."""

MAX_TURNED_BYTES: Final = 512_000_000
"""Bytes of the labels of a volume whose slices lie across those of its image: all are held at once."""

_UNSET: Final = (np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0]))
"""The affines that nibabel and ITK write for an array whose place they were not told."""

_CODES: Final = ("LR", "PA", "IS")

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class VoxelGrid:
    """The voxels of a volume: ``shape`` is columns, rows, slices.

    ``affine``: float64 [4, 4] from these three indices to millimetres, axes to right, front and top; None where the
    file does not say it.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64] | None

    @property
    def placed(self) -> bool:
        """Whether the file says where the volume is, and not only what its library writes by default."""
        return self.affine is not None and not any(np.array_equal(self.affine, unset) for unset in _UNSET)

    def words(self) -> str:
        """Origin, spacing and axes in words."""
        if self.affine is None:
            return "no geometry"
        matrix = self.affine[:3, :3]
        axes = []
        for column in matrix.T:
            axis = int(np.abs(column).argmax())
            axes.append(_CODES[axis][int(column[axis] > 0)])
        oblique = " (oblique)" if (np.abs(matrix) > 1e-3 * np.abs(matrix).max(axis=0)).sum() > 3 else ""
        sizes = " x ".join(f"{size:.4g}" for size in np.linalg.norm(matrix, axis=0))
        origin = ", ".join(f"{place:.4g}" for place in self.affine[:3, 3])
        return f"origin ({origin}) mm, spacing {sizes} mm, axes {'-'.join(axes)}{oblique}"


@dataclass(frozen=True, slots=True)
class Turn:
    """How to read a mask in the order of its image: by axis of the image (column, row, slice) the axis of the mask,
    and whether it counts backwards."""

    axes: tuple[int, int, int]
    backwards: tuple[bool, bool, bool]


SAME: Final = Turn((0, 1, 2), (False, False, False))


def aligned(image: VoxelGrid, mask: VoxelGrid) -> Turn | Literal["unknown"] | None:
    """The turn after which the voxels of both are the same places, to MOST_APART; "unknown" where only one file says
    where it is; None where the places are others, or the sizes.
    """
    if image.affine is None and mask.affine is None:
        return SAME
    turn = _turn(image, mask)
    if turn is None and not (image.placed and mask.placed):
        return "unknown" if image.placed or mask.placed else SAME
    return turn


def mismatch(image: VoxelGrid, mask: VoxelGrid) -> BadInput:
    """The refusal of a pair whose voxels are not the same places."""
    return BadInput(f"image: {image.words()}; mask: {mask.words()}", code="geometry_mismatch")


def _turn(image: VoxelGrid, mask: VoxelGrid) -> Turn | None:
    """The signed permutation of axes with which ``mask`` covers the grid of ``image``; None where there is none."""
    if image.affine is None or mask.affine is None:
        return None
    # What differs between two affine maps is largest at a corner.
    corners = np.array(list(itertools.product(*((0, size - 1) for size in image.shape))), np.float64)
    with np.errstate(all="ignore"):  # of affines that are nearly singular
        try:
            to_mask = np.linalg.inv(mask.affine) @ image.affine
        except np.linalg.LinAlgError:
            return None
        found = corners @ to_mask[:3, :3].T + to_mask[:3, 3]
    for axes in itertools.permutations(range(3)):
        if any(image.shape[own] != mask.shape[other] for own, other in enumerate(axes)):
            continue
        for backwards in itertools.product((False, True), repeat=3):
            expected = np.empty_like(corners)
            for own, other in enumerate(axes):
                expected[:, other] = image.shape[own] - 1 - corners[:, own] if backwards[own] else corners[:, own]
            if np.abs(found - expected).max() <= MOST_APART:
                return Turn((axes[0], axes[1], axes[2]), (backwards[0], backwards[1], backwards[2]))
    return None


def turned(volume: Volume, turn: Turn) -> Callable[[int], Labels]:
    """Reads a slice [rows, columns] of the labels of ``volume`` in the order of the image, by its number there.

    Where the slices of both lie across each other all labels are read first: TooLarge beyond MAX_TURNED_BYTES, and
    what ``Volume.values`` raises.
    """
    flips = tuple(axis for axis, own in enumerate((1, 0)) if turn.backwards[own])
    if turn.axes[2] != 2:
        across = np.transpose(_all(volume), tuple(2 - turn.axes[own] for own in (2, 1, 0)))
        if turn.backwards[2]:
            across = across[::-1]
        return lambda frame: np.flip(across[frame], flips)

    def read(frame: int) -> Labels:
        plane = volume.values(volume.depth - 1 - frame if turn.backwards[2] else frame)
        return np.flip(plane if turn.axes[0] == 0 else plane.T, flips)

    return read


def _all(volume: Volume) -> Labels:
    """All labels [slices, rows, columns], in the smallest of uint8, uint16 and int32."""
    shape = volume.depth, volume.height, volume.width
    labels: Labels = _zeros(shape, np.uint8)
    for index in range(volume.depth):
        plane = volume.values(index)
        low, high = int(plane.min()), int(plane.max())
        own = next((kind for kind in (np.uint8, np.uint16) if low >= 0 and high <= np.iinfo(kind).max), np.int32)
        kind = np.promote_types(own, labels.dtype)
        if kind != labels.dtype:
            wider = _zeros(shape, kind.type)
            wider[:index] = labels[:index]
            labels = wider
        labels[index] = plane
    return labels


def _zeros(shape: tuple[int, int, int], kind: Any) -> Labels:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    if size > MAX_TURNED_BYTES:
        raise TooLarge(
            f"its slices lie across those of the image, and its labels have {size} bytes; at most {MAX_TURNED_BYTES} "
            "are turned: save it with the axes of the image"
        )
    return np.zeros(shape, kind)
