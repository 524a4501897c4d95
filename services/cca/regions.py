"""Regions of rectangles, measured exactly on grids of their own coordinates.

Nothing here depends on the size of the image: a region is a list of disjoint rectangles, and a
coverage is a count per cell of a compressed grid, whose lines are the coordinates that occur. All
trajectories of a group are handled at once, because a call of numpy costs more than the arithmetic
on the few lines of one. A mask on a grid is summed by parts: Σ mask·f over cells is Σ corner·F over
line crossings, where `corner` is the mask's second difference and F the sum of f to the left of and
above a crossing. Numbers are integers throughout, exact below 2^53 where they pass through floats.

Legend: n trajectories, k boxes, l lines, y rows, x columns; rows before columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from msgspec.structs import astuple

from shared.geometry import Box, ImageSize

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Region = list[Box]
"""Disjoint rectangles, sorted by (y1, x1)."""


@dataclass(frozen=True)
class Unions:
    """M_i of trajectories that looked at least once, each on the grid of its own lines."""

    xs_nl: Ints
    """Ascending; a line occurs more than once where boxes share it. Original-image pixels."""
    ys_nl: Ints
    corners_nyx: Ints
    """Second difference of each union's mask at the crossings of its lines."""

    @classmethod
    def of(cls, boxes: Sequence[Sequence[Box]]) -> "Unions":
        """Of lists of boxes, none of them empty."""
        num_boxes = max(map(len, boxes))
        # Repeating a trajectory's first box makes the lists equally long and changes no union.
        padded = [[*own, *[own[0]] * (num_boxes - len(own))] for own in boxes]
        flat = chain.from_iterable(map(astuple, chain.from_iterable(padded)))
        sides = np.fromiter(flat, np.int64).reshape(len(boxes), num_boxes, 2, 2)
        low_nk, high_nk = sides[:, :, 0], sides[:, :, 1]
        lines = np.sort(np.concatenate((low_nk, high_nk), axis=1), axis=1)
        xs_nl, ys_nl = lines[:, :, 0], lines[:, :, 1]
        in_x_nkl = _within(xs_nl, low_nk[:, :, 0], high_nk[:, :, 0])
        in_y_nkl = _within(ys_nl, low_nk[:, :, 1], high_nk[:, :, 1])
        mask_nyx = np.matmul(in_y_nkl.transpose(0, 2, 1), in_x_nkl) > 0
        return cls(xs_nl, ys_nl, _corners(mask_nyx))

    def areas_px(self) -> list[int]:
        """|M_i| of each."""
        areas: list[int] = np.einsum(
            "nyx,ny,nx->n", self.corners_nyx, self.ys_nl, self.xs_nl
        ).tolist()
        return areas


def _within(lines_nl: Ints, low_nk: Ints, high_nk: Ints) -> npt.NDArray[np.float32]:
    """1 where the cell after a line lies in a box: of that box, of that trajectory (nkl)."""
    lines = lines_nl[:, None, :]
    inside = (lines >= low_nk[:, :, None]) & (lines < high_nk[:, :, None])
    return inside.astype(np.float32)


def _corners(mask_nyx: Mask) -> Ints:
    """Second difference: adds up to the mask again, from the left and from above."""
    num, rows, columns = mask_nyx.shape
    padded = np.zeros((num, rows + 1, columns + 1), dtype=np.int64)
    padded[:, 1:, 1:] = mask_nyx
    by_row = padded[:, 1:] - padded[:, :-1]
    return by_row[:, :, 1:] - by_row[:, :, :-1]


@dataclass(frozen=True)
class Grid:
    """Lines of a compressed grid: cell (r, c) is [xs[c], xs[c+1]) × [ys[r], ys[r+1])."""

    xs: Ints
    """Distinct, ascending; original-image pixels."""
    ys: Ints

    @classmethod
    def of(cls, unions: Unions | None) -> "Grid":
        """The coarsest grid on which every union is a set of cells; empty for none."""
        if unions is None:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return cls(_distinct(unions.xs_nl), _distinct(unions.ys_nl))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; (0, 0) for a grid without boxes."""
        return max(0, len(self.ys) - 1), max(0, len(self.xs) - 1)

    @property
    def num_cells(self) -> int:
        """Rows times columns."""
        return self.shape[0] * self.shape[1]

    def crossings(self, unions: Unions) -> tuple[Ints, Ints]:
        """Row and column on this grid of the lines of each union (nl)."""
        return np.searchsorted(self.ys, unions.ys_nl), np.searchsorted(self.xs, unions.xs_nl)

    def counts(self, rows_nl: Ints, columns_nl: Ints, corners_nyx: Ints) -> Ints:
        """How many of the unions cover each cell, YX."""
        shape = len(self.ys), len(self.xs)
        flat = rows_nl[:, :, None] * shape[1] + columns_nl[:, None, :]
        corners = np.bincount(flat.ravel(), corners_nyx.ravel(), minlength=shape[0] * shape[1])
        return _sums(corners.astype(np.int64).reshape(shape))[:-1, :-1]


def _sums(cells: Ints) -> Ints:
    """Of all cells to the left of and above each, itself included.

    Turned in between, because numpy adds up along rows four times as fast as along columns.
    """
    by_row = np.ascontiguousarray(cells.cumsum(axis=1).T)
    return by_row.cumsum(axis=1, out=by_row).T


def _distinct(lines: Ints) -> Ints:
    """Ascending, without repetitions (`np.unique` takes three times as long for a few lines)."""
    ordered = np.sort(lines, axis=None)
    is_first = np.empty(ordered.size, dtype=bool)
    is_first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return ordered[is_first]


@dataclass(frozen=True)
class Patch:
    """A mask on a grid, cut down to the rows and columns in which it is set."""

    top: int
    """Row of the grid."""
    left: int
    xs: Ints
    """Lines of the grid around the patch."""
    ys: Ints
    mask: Mask
    """YX; has at least one cell."""

    @classmethod
    def of(cls, grid: Grid, mask: Mask) -> "Patch | None":
        """The patch of a mask; None if nothing is set."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            return None
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        xs, ys = grid.xs[left : right + 1], grid.ys[top : bottom + 1]
        return cls(top, left, xs, ys, mask[top:bottom, left:right])

    def areas_px(self) -> Ints:
        """Area of the mask to the left of and above each crossing of the patch's lines, YX."""
        cells = self.mask * (self.xs[1:] - self.xs[:-1])
        cells *= (self.ys[1:] - self.ys[:-1])[:, None]
        areas = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1), dtype=np.int64)
        areas[1:, 1:] = _sums(cells)
        return areas

    def areas_inside_px(
        self, areas: Ints, rows_nl: Ints, columns_nl: Ints, corners_nyx: Ints
    ) -> list[int]:
        """Area of the mask inside each union, from `areas_px`; lines are rows and columns."""
        num_rows, num_columns = self.mask.shape
        rows = np.clip(rows_nl - self.top, 0, num_rows)
        columns = np.clip(columns_nl - self.left, 0, num_columns)
        at = areas.ravel()[rows[:, :, None] * (num_columns + 1) + columns[:, None, :]]
        inside: list[int] = np.einsum("nyx,nyx->n", corners_nyx, at).tolist()
        return inside

    def rectangles(self) -> Region:
        """Disjoint rectangles: maximal runs along x, merged while the run stays the same."""
        num_rows, num_columns = self.mask.shape
        padded = np.zeros((num_rows + 2, num_columns + 2), dtype=bool)
        padded[1:-1, 1:-1] = self.mask
        edges = padded[1:, 1:] != padded[1:, :-1]
        above = padded[:-1, 1:] != padded[:-1, :-1]
        changed = np.flatnonzero((edges != above).any(axis=1))
        rows, columns = np.nonzero(edges[changed])
        xs, ys = self.xs.tolist(), self.ys[changed].tolist()
        runs_by_row: list[set[tuple[int, int]]] = [set() for _ in ys]
        ends = iter(columns.tolist())
        for row in rows[::2].tolist():
            runs_by_row[row].add((xs[next(ends)], xs[next(ends)]))
        return _merged(ys, runs_by_row)


def _merged(ys: Sequence[int], runs_by_row: Sequence[set[tuple[int, int]]]) -> Region:
    """Runs that begin at each of the ys, as rectangles; the last row has none."""
    done: Region = []
    begun: dict[tuple[int, int], int] = {}
    for y, runs in zip(ys, runs_by_row, strict=True):
        for run in begun.keys() - runs:
            done.append(Box(run[0], begun.pop(run), run[1], y))
        for run in runs:
            begun.setdefault(run, y)
    return sorted(done, key=lambda box: (box.y1, box.x1))


def area_px(region: Region) -> int:
    """Area of a region in pixels."""
    return sum(box.area_px for box in region)


def run_lengths(region: Region, image: ImageSize) -> list[int]:
    """Row-major run lengths of the region's mask, zeros first, summing to the image's pixels."""
    width, total = image.width_px, image.num_pixels
    starts = [np.arange(b.y1, b.y2, dtype=np.int64) * width + b.x1 for b in region]
    ends = [np.arange(b.y1, b.y2, dtype=np.int64) * width + b.x2 for b in region]
    if not region:
        return [total]
    start, end = np.sort(np.concatenate(starts)), np.sort(np.concatenate(ends))
    is_break = start[1:] != end[:-1]
    start = start[np.concatenate(([True], is_break))]
    end = end[np.concatenate((is_break, [True]))]
    edges = np.concatenate(([0], np.column_stack((start, end)).ravel(), [total]))
    lengths: list[int] = np.diff(edges).tolist()
    return lengths if lengths[-1] > 0 else lengths[:-1]
