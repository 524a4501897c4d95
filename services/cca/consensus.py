"""Consensus credit assignment: where the agreeing trajectories looked, and R_tool for it.

C(u,v) = Σ_{T_i ∈ T⁺} M_i(u,v) and M̂(u,v) = 1[C(u,v) > |T⁺|/2] (METHOD.md, CCA), on the compressed
grid of all boxes. Trajectories without a zoom count in |T⁺|, correlated branches each count.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from services.cca.regions import Grid, Ints, Patch, Region, Unions
from shared.api.cca import RewardSettings, ToolRewardArm
from shared.geometry import Box

CONSENSUS_REWARD = 1.0
"""R_tool for a correct trajectory that looked where the others did (paper)."""

OTHER_REWARD = 0.5
"""R_tool for a correct trajectory that looked elsewhere; also that of the other arms (paper)."""


class TooManyCells(ValueError):
    """The boxes span larger grids than is allowed."""


@dataclass(frozen=True)
class Consensus:
    """The coverage of one set T⁺ and what follows from it."""

    num_agreeing: int
    """|T⁺|."""
    grid: Grid
    counts: Ints
    """C on the grid, YX."""
    patch: Patch | None
    """M̂ on the grid; None where no strict majority looked."""
    ious: list[float]
    """IoU(M_j, M̂) of every trajectory, agreeing or not; 0 when either is empty."""

    @cached_property
    def region(self) -> Region:
        """M̂ as disjoint rectangles."""
        return [] if self.patch is None else self.patch.rectangles()


def find_consensus(
    boxes: Sequence[Sequence[Box]], agreeing: Collection[int], max_grid_cells: int
) -> Consensus:
    """C, M̂ and IoU for trajectories given by their boxes; `agreeing` are the indices in T⁺.

    Raises `TooManyCells`.
    """
    looked = [index for index, own in enumerate(boxes) if own]
    ious = [0.0] * len(boxes)
    if not looked:
        grid = Grid.of(None)
        return Consensus(len(agreeing), grid, np.zeros(grid.shape, np.int64), None, ious)
    _refuse_if_over(max_grid_cells, len(looked) * (2 * max(map(len, boxes))) ** 2)
    unions = Unions.of([boxes[index] for index in looked])
    grid = Grid.of(unions)
    _refuse_if_over(max_grid_cells, grid.num_cells)
    rows_nl, columns_nl = grid.crossings(unions)
    voting = np.array([place for place, index in enumerate(looked) if index in agreeing], np.intp)
    counts = grid.counts(rows_nl[voting], columns_nl[voting], unions.corners_nyx[voting])
    patch = Patch.of(grid, counts > len(agreeing) // 2)  # exactly where 2·C > |T⁺|
    if patch is None:
        return Consensus(len(agreeing), grid, counts, patch, ious)
    areas = patch.areas_px()
    inside_px = patch.areas_inside_px(areas, rows_nl, columns_nl, unions.corners_nyx)
    for index, shared_px, own_px in zip(looked, inside_px, unions.areas_px(), strict=True):
        ious[index] = _iou(shared_px, own_px, int(areas[-1, -1]))
    return Consensus(len(agreeing), grid, counts, patch, ious)


def _refuse_if_over(max_grid_cells: int, num_cells: int) -> None:
    if num_cells > max_grid_cells:
        raise TooManyCells(
            f"the boxes span a grid of {num_cells} cells, at most {max_grid_cells} are scored"
        )


def _iou(shared_px: int, first_px: int, second_px: int) -> float:
    """Intersection over union from areas; 0 when either region is empty."""
    if first_px == 0 or second_px == 0:
        return 0.0
    return shared_px / (first_px + second_px - shared_px)


def tool_reward(*, is_correct: bool, has_zoomed: bool, iou: float, knobs: RewardSettings) -> float:
    """1[R_acc > 0]·R_tool of one trajectory (METHOD.md, CCA and Arms).

    CCA: 1.0 if IoU(M_j, M̂) > η, else 0.5, for T_j ∈ T⁺; `no_zoom_tool_reward` for a correct
    trajectory that never zoomed (the paper's words give 0.5, ours is 0.0).
    """
    match knobs.arm:
        case ToolRewardArm.NONE:
            return 0.0
        case ToolRewardArm.UNCONDITIONAL:
            return OTHER_REWARD if has_zoomed else 0.0
        case ToolRewardArm.GATED:
            return OTHER_REWARD if is_correct and has_zoomed else 0.0
        case ToolRewardArm.CCA:
            if not is_correct:
                return 0.0
            if not has_zoomed:
                return knobs.no_zoom_tool_reward
            return CONSENSUS_REWARD if iou > knobs.iou_threshold else OTHER_REWARD
