"""`python -m benchmarks.cca`: consensus and IoUs of a group on the compressed grid, against pixels.

Exact: `services.cca.consensus.find_consensus`, what the service calls: coverage, mask and IoUs (the
mask's rectangles are made when asked for, and no pixels' either). Rasterised: METHOD.md's formulas
written down in numpy, a mask of pixels per trajectory. A second rasteriser, tuned as far
as numpy goes (bytes instead of counts, no temporary that can be spared), is measured beside it.
All three must give the same IoUs.

The exact way takes less than a millisecond, so its time is the mean of some calls in a row; what
the first one takes after a rasteriser has had the caches is given as `exact_cold_ms`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, measure_calls
from services.cca.consensus import find_consensus
from services.cca.settings import CcaSettings
from shared.geometry import Box

Masks = npt.NDArray[np.bool_]

AIM = ">= 100"
JUDGED_SIDE_PX = 1024
NUM_TRAJECTORIES = 16
NUM_BOXES = 5
CORRECT_SHARE = 0.75
CALLS = 16
"""Of the exact way, for one measurement."""


def draw_group(rng: np.random.Generator, side_px: int) -> list[list[Box]]:
    """Boxes of one group: most look near the middle, as agreeing trajectories do."""
    group: list[list[Box]] = []
    for _ in range(NUM_TRAJECTORIES):
        sizes = rng.integers(side_px // 12, side_px // 3, (NUM_BOXES, 2))
        centres = rng.normal(side_px / 2, side_px / 8, (NUM_BOXES, 2))
        starts = np.clip(centres - sizes / 2, 0, side_px - sizes).astype(int)
        corners: list[list[int]] = np.hstack((starts, starts + sizes)).tolist()
        group.append([Box(*own) for own in corners])
    return group


def paint(boxes: Sequence[Box], side_px: int) -> Masks:
    """M_i as pixels."""
    mask = np.zeros((side_px, side_px), dtype=bool)
    for box in boxes:
        mask[box.y1 : box.y2, box.x1 : box.x2] = True
    return mask


def rasterised(
    group: Sequence[Sequence[Box]], agreeing: Sequence[int], side_px: int
) -> list[float]:
    """IoU(M_j, M̂) of every trajectory, by METHOD.md's formulas on pixels."""
    masks_nyx = np.stack([paint(boxes, side_px) for boxes in group])
    counts_yx = masks_nyx[list(agreeing)].sum(axis=0)
    consensus_yx = counts_yx > len(agreeing) / 2
    ious: list[float] = []
    for mask_yx in masks_nyx:
        joined = int((mask_yx | consensus_yx).sum())
        is_empty = not (mask_yx.any() and consensus_yx.any())
        ious.append(0.0 if is_empty else int((mask_yx & consensus_yx).sum()) / joined)
    return ious


def rasterised_tuned(
    group: Sequence[Sequence[Box]], agreeing: Sequence[int], side_px: int
) -> list[float]:
    """The same with as little memory traffic as numpy allows."""
    masks = [paint(boxes, side_px) for boxes in group]
    counts_yx = np.zeros((side_px, side_px), dtype=np.uint8)
    for index in agreeing:
        counts_yx += masks[index].view(np.uint8)
    consensus_yx = counts_yx > len(agreeing) / 2
    consensus_px = np.count_nonzero(consensus_yx)
    shared_yx = np.empty_like(consensus_yx)
    ious: list[float] = []
    for mask in masks:
        shared_px = np.count_nonzero(np.logical_and(mask, consensus_yx, out=shared_yx))
        own_px = np.count_nonzero(mask)
        joined = own_px + consensus_px - shared_px
        ious.append(shared_px / joined if own_px and consensus_px else 0.0)
    return ious


def _num_repeats(side_px: int, wanted: int) -> int:
    """Fewer of the sizes whose pixels take seconds."""
    return max(2, wanted // max(1, (side_px // 1024) ** 2))


@dataclass(frozen=True)
class Measured:
    """Seconds of a rasteriser and of the exact way, at one size."""

    plain: Pairs
    tuned: Pairs
    cold: Pairs
    """Plain, and the exact way right after it."""


def measure(side_px: int, repeats: int, seed: int) -> Measured:
    """Both rasterisers in turns with the exact way. Exits if the three disagree."""
    group = draw_group(np.random.default_rng([seed, side_px]), side_px)
    agreeing = list(range(round(CORRECT_SHARE * NUM_TRAJECTORIES)))
    max_cells = CcaSettings.model_fields["max_grid_cells"].default

    def exact() -> list[float]:
        return find_consensus(group, agreeing, max_cells).ious

    def plain() -> list[float]:
        return rasterised(group, agreeing, side_px)

    def tuned() -> list[float]:
        return rasterised_tuned(group, agreeing, side_px)

    if not exact() == plain() == tuned():
        raise SystemExit(f"error: exact and rasterised IoUs differ at {side_px} px")
    repeats = _num_repeats(side_px, repeats)

    def against(other: Callable[[], object], title: str, calls: int) -> Pairs:
        label = f"{side_px} px, {title}"
        return measure_calls(other, exact, repeats=repeats, title=label, second_calls=calls)

    return Measured(
        plain=against(plain, "numpy", CALLS),
        tuned=against(tuned, "tuned numpy", CALLS),
        cold=against(plain, "numpy, cold caches", 1),
    )


def _milliseconds(measured: Measured) -> dict[str, list[float]]:
    rasterised_s, exact_s = measured.plain.times()
    times = {
        "exact_ms": exact_s,
        "exact_cold_ms": measured.cold.times()[1],
        "rasterised_ms": rasterised_s,
        "tuned_ms": measured.tuned.times()[0],
    }
    return {
        **{name: [1e3 * s for s in spread.as_list()] for name, spread in times.items()},
        "ratio": measured.plain.ratio().as_list(),
        "ratio_to_tuned": measured.tuned.ratio().as_list(),
        "ratio_cold": measured.cold.ratio().as_list(),
    }


def run(sides_px: Sequence[int], repeats: int, seed: int) -> Outcome:
    """Measure all sizes; the judged one is the figure, or the last where it is not among them."""
    judged = JUDGED_SIDE_PX if JUDGED_SIDE_PX in sides_px else sides_px[-1]
    figures: dict[int, Figure] = {}
    by_side: dict[str, dict[str, list[float]]] = {}
    for side_px in sides_px:
        measured = measure(side_px, repeats, seed)
        name = "cca" if side_px == judged else f"cca at {side_px} px"
        aim = AIM if side_px == JUDGED_SIDE_PX else None
        ratio = measured.plain.ratio().median
        figures[side_px] = Figure(name, ratio, "x as fast as rasterised numpy", aim)
        by_side[str(side_px)] = _milliseconds(measured)
    return make_outcome(
        figures[judged],
        also=[figure for side_px, figure in figures.items() if side_px != judged],
        detail={
            "group": f"{NUM_TRAJECTORIES} x {NUM_BOXES} boxes",
            "judged_side_px": judged,
            "clock": "processor time of the thread",
            "by_side_px": by_side,
            "repeats": repeats,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.cca", description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 4096], metavar="PX")
    parser.add_argument("--repeats", type=int, default=40, help="fewer for large images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print_outcome(run(args.sides, args.repeats, args.seed))


if __name__ == "__main__":
    main()
