"""Unions of rectangles, measured exactly on the grid of their own coordinates.

Nothing here depends on the size of the image: a region is a list of disjoint rectangles, and a
coverage is a count per cell of the compressed grid, whose lines are the coordinates that occur.
Counts are made with a 2-D difference array, areas with a 2-D prefix sum; both are integers.
Arrays are YX: rows first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.geometry import Box, ImageSize

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Region = list[Box]
"""Disjoint rectangles, sorted by (y1, x1)."""


@dataclass(frozen=True)
class Grid:
    """Lines of a compressed grid: cell (r, c) is [xs[c], xs[c+1]) × [ys[r], ys[r+1])."""

    xs: Ints
    """Distinct, ascending; original-image pixels."""
    ys: Ints

    @classmethod
    def of(cls, boxes: Iterable[Box]) -> "Grid":
        """The coarsest grid on which every box is a block of cells."""
        corners = np.array([box.as_tuple() for box in boxes], dtype=np.int64).reshape(-1, 4)
        return cls(xs=np.unique(corners[:, [0, 2]]), ys=np.unique(corners[:, [1, 3]]))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; (0, 0) for a grid without boxes."""
        return max(0, len(self.ys) - 1), max(0, len(self.xs) - 1)

    @property
    def num_cells(self) -> int:
        """Rows times columns."""
        return self.shape[0] * self.shape[1]

    def cell_areas_px(self) -> Ints:
        """Area of each cell, YX."""
        return np.diff(self.ys)[:, None] * np.diff(self.xs)[None, :]

    def counts(self, boxes: Sequence[Box]) -> Ints:
        """How many of the boxes cover each cell, YX; their corners must be grid lines."""
        rows, columns = self.shape
        difference = np.zeros((rows + 1, columns + 1), dtype=np.int64)
        if boxes:
            x1, y1, x2, y2 = self._lines(boxes)
            np.add.at(difference, (y1, x1), 1)
            np.add.at(difference, (y1, x2), -1)
            np.add.at(difference, (y2, x1), -1)
            np.add.at(difference, (y2, x2), 1)
        return difference.cumsum(axis=0).cumsum(axis=1)[:rows, :columns]

    def area_inside_px(self, mask: Mask, boxes: Sequence[Box]) -> int:
        """Area of the mask inside disjoint boxes whose corners are grid lines."""
        if not boxes:
            return 0
        table = np.zeros((self.shape[0] + 1, self.shape[1] + 1), dtype=np.int64)
        table[1:, 1:] = (mask * self.cell_areas_px()).cumsum(axis=0).cumsum(axis=1)
        x1, y1, x2, y2 = self._lines(boxes)
        return int((table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1]).sum())

    def _lines(self, boxes: Sequence[Box]) -> tuple[Ints, Ints, Ints, Ints]:
        """Indices of the grid lines of the boxes' sides: x1, y1, x2, y2."""
        corners = np.array([box.as_tuple() for box in boxes], dtype=np.int64)
        columns = np.searchsorted(self.xs, corners[:, [0, 2]])
        rows = np.searchsorted(self.ys, corners[:, [1, 3]])
        return columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]


def rectangles(grid: Grid, mask: Mask) -> Region:
    """A mask as disjoint rectangles: maximal runs along x, merged while the run stays the same."""
    done: Region = []
    begun: dict[tuple[int, int], int] = {}
    for row in range(grid.shape[0]):
        runs = _runs(grid, mask[row])
        y = int(grid.ys[row])
        for run in [run for run in begun if run not in runs]:
            done.append(Box(run[0], begun.pop(run), run[1], y))
        for run in runs:
            begun.setdefault(run, y)
    bottom = int(grid.ys[-1]) if begun else 0
    done += [Box(run[0], y, run[1], bottom) for run, y in begun.items()]
    return sorted(done, key=lambda box: (box.y1, box.x1))


def _runs(grid: Grid, cells: Mask) -> list[tuple[int, int]]:
    """Maximal runs of set cells of one grid row, as (x1, x2)."""
    edges = np.flatnonzero(np.diff(cells.astype(np.int8), prepend=0, append=0))
    return [(int(grid.xs[a]), int(grid.xs[b])) for a, b in edges.reshape(-1, 2)]


def union(boxes: Sequence[Box]) -> Region:
    """M_i: the union of boxes as disjoint rectangles."""
    grid = Grid.of(boxes)
    return rectangles(grid, grid.counts(boxes) > 0)


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
