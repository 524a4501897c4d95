"""`python -m benchmarks.trainer`: a trainer's step on trees of tokens, against one by one.

The same groups, model and loss in several ways, forward and backward on one thread, each in turns
with trees (see `benchmarks.ways`): padded and packed trajectories that encode each distinct image
once, padded ones that each encode their own images, and TRL's GRPO step. The gradients are
compared before anything is timed. Every way puts its batch together within its time, images to
patches included; TRL computes a whole group at a time or one trajectory, whichever is faster.

What is judged are recorded groups of the trained tiny policy (16 trajectories, two turns, a crop)
with their view drawn at 672 px. Beside it stand two bounds: tokens one by one over distinct ones,
which is the ratio if a token cost the same everywhere and images nothing, and the ratio of the
arithmetic, which counts images too; the latter also for Qwen's sizes, where nothing is measured.
Then the same groups as they were recorded, other groups, parts of a larger group, and views of
other sizes.
"""

import argparse
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.groups import MadeUp, Recorded, Shape
from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, Spread, measure_calls
from benchmarks.qwen import Size, config_of
from benchmarks.services import TRAINED
from benchmarks.ways import OTHERS, Ways
from services.trainer.dry_run.flops import StepFlops
from services.trainer.dry_run.shape import ModelShape, shape_of
from shared.blobs import BlobStore

AIM = ">= 3"
TRL_AIM = ">= 4"
MOST_DIFFERENCE = 1e-4
LONG = Shape(view_px=672, crop_px=168, num_zooms=2, thought_words=40)
_ONCE = ("padded", "packed", "trl")


@dataclass(frozen=True)
class Plan:
    """Groups, the ways they are computed, and how often each."""

    groups: Recorded | MadeUp
    ways: tuple[str, ...]
    repeats: int


def others(judged: Recorded) -> dict[str, Plan]:
    """What else is measured, once: other groups, and how the ratio grows with group and view."""

    def once(groups: Recorded | MadeUp) -> Plan:
        return Plan(groups, _ONCE, 1)

    return {
        "the demo's shape": once(Recorded("demo", 4)),
        "start of training": once(Recorded("start", 1, judged.view_px)),
        "long thoughts and two zooms": once(MadeUp(LONG, 1)),
        **{
            f"group of {n}": once(Recorded("large", 1, judged.view_px, n))
            for n in (2, 4, 8, 16, 32)
        },
        **{f"view of {n} px": once(Recorded("demo", 1, n)) for n in (168, 336, 504)},
    }


@dataclass(frozen=True)
class Measured:
    """Seconds of each way beside trees."""

    pairs: dict[str, Pairs]
    """By way."""
    num_trajectories: int
    token_ratio: float
    micro_batch: int
    flops: dict[str, StepFlops]
    """By way; packed stands for padded, alone for TRL."""
    arithmetic: dict[str, float]
    """FLOPs of packed over those of trees, by published size."""
    differences: dict[str, float]
    """‖Δg‖/‖g‖ of each way, trees among them, against padded."""

    @property
    def ratio(self) -> Spread:
        """Trees against the better of those that share images."""
        shared = (self.pairs["padded"].ratio(), self.pairs["packed"].ratio())
        return min(shared, key=lambda spread: spread.median)

    def bound(self, way: str) -> float:
        """What a way computes over what trees compute."""
        return _ratio_of(self.flops, way)

    def detail(self) -> dict[str, Any]:
        """What helps to read it."""
        trees_s = Spread.of([s for pairs in self.pairs.values() for s in pairs.second])
        seconds = {"trees": trees_s}
        seconds |= {way: pairs.times()[0] for way, pairs in self.pairs.items()}
        return {
            "ratio": self.ratio.as_list(),
            **{f"ratio_to_{way}": p.ratio().as_list() for way, p in self.pairs.items()},
            "tokens_one_by_one_over_distinct": self.token_ratio,
            "trajectories": self.num_trajectories,
            "seconds": {way: spread.as_list() for way, spread in seconds.items()},
            "trajectories_per_s": {
                way: self.num_trajectories / spread.median for way, spread in seconds.items()
            },
            "flops_ratio": self.bound("packed"),
            "flops_ratio_to_alone": self.bound("alone"),
            "flops_ratio_by_size": self.arithmetic,
            "gflops": {way: asdict(f) for way, f in _in_giga(self.flops).items()},
            "trl_micro_batch": self.micro_batch,
            "gradient_difference": max(self.differences.values()),
            "gradient_difference_of_trl": self.differences["trl"],
        }


def measure(model: Path, plan: Plan, title: str) -> Measured:
    """All ways of a plan. Exits if their gradients differ."""
    with tempfile.TemporaryDirectory() as folder:
        blobs = BlobStore(folder)
        ways = Ways(model, plan.groups.groups(model, blobs), blobs)
        expected = ways.gradient("padded")
        differences: dict[str, float] = {}
        for way in ("trees", *(way for way in plan.ways if way != "padded")):
            off = float((ways.gradient(way) - expected).norm() / expected.norm())
            if off > MOST_DIFFERENCE:
                raise SystemExit(f"error: the gradient of {way} is off by {off:.1e} ({title})")
            differences[way] = off
        pairs = {
            way: measure_calls(
                lambda way=way: ways.gradient(way),
                lambda: ways.gradient("trees"),
                repeats=plan.repeats,
                title=f"{title}, {way}",
            )
            for way in plan.ways
        }
        return Measured(
            pairs=pairs,
            num_trajectories=len(ways.samples),
            token_ratio=ways.token_ratio(),
            micro_batch=ways.micro_batch,
            flops=ways.flops(shape_of(ways.policy.model.config)),
            arithmetic={
                size.value: _ratio_of(ways.flops(shape), "packed")
                for size, shape in _published_shapes(model).items()
            },
            differences=differences,
        )


def run(args: argparse.Namespace) -> Outcome:
    """All plans."""
    torch.set_num_threads(1)
    groups = Recorded(args.recording, args.groups, args.view_px, args.group_size)
    judged = measure(args.model, Plan(groups, OTHERS, args.repeats), f"{args.view_px} px")
    measured = {
        name: measure(args.model, plan, name)
        for name, plan in ({} if args.brief else others(groups)).items()
    }
    return make_outcome(
        Figure("trainer", judged.ratio.median, _UNIT, AIM),
        also=[
            Figure("trainer, over TRL", _ratio(judged, "trl"), "x TRL's step", TRL_AIM),
            Figure(
                "trainer, over TRL with π_old",
                _ratio(judged, "trl_with_old"),
                "x TRL's step and its pass for π_old",
            ),
            Figure("trainer, images per trajectory", _ratio(judged, "alone"), "x padded"),
            Figure("trainer, tokens", judged.token_ratio, "x fewer"),
            Figure("trainer, arithmetic", judged.bound("packed"), "x fewer FLOPs"),
            Figure("trainer, arithmetic over TRL", judged.bound("alone"), "x fewer FLOPs"),
            *(
                Figure(f"trainer, arithmetic of {size.upper()}", ratio, "x fewer FLOPs, counted")
                for size, ratio in judged.arithmetic.items()
            ),
            *(figure for name, m in measured.items() for figure in _figures(name, m)),
        ],
        detail={
            "clock": "processor time of the thread",
            "groups": asdict(groups),
            "judged": judged.detail(),
            **{name: m.detail() for name, m in measured.items()},
            "repeats": args.repeats,
        },
    )


def _ratio_of(flops: dict[str, StepFlops], way: str) -> float:
    return flops[way].total / flops["trees"].total


@functools.cache
def _published_shapes(model: Path) -> dict[Size, ModelShape]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return {s: shape_of(config_of(s, tokenizer)) for s in (Size.QWEN_3B, Size.QWEN_7B)}


def _in_giga(flops: dict[str, StepFlops]) -> dict[str, StepFlops]:
    return {
        way: StepFlops(**{part: n / 1e9 for part, n in asdict(of_way).items()})
        for way, of_way in flops.items()
    }


_UNIT = "x the better of padded and packed"


def _ratio(measured: Measured, way: str) -> float:
    return measured.pairs[way].ratio().median


def _figures(name: str, measured: Measured) -> list[Figure]:
    return [
        Figure(f"trainer, {name}", measured.ratio.median, _UNIT),
        Figure(f"trainer, {name}, over TRL", _ratio(measured, "trl"), "x TRL's step"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.trainer", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="pairs per way; others have fewer")
    parser.add_argument("--recording", default="demo", help="a file in benchmarks/recorded")
    parser.add_argument("--groups", type=int, default=1, help="of the recording, in one step")
    parser.add_argument("--group-size", type=int, help="trajectories of each; unset takes all")
    parser.add_argument("--view-px", type=int, default=672)
    parser.add_argument("--brief", action="store_true", help="without other groups")
    parser.add_argument("--model", type=Path, default=TRAINED)
    print_outcome(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
