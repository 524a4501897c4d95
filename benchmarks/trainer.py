"""`python -m benchmarks.trainer`: a trainer's step on trees of tokens, against one by one.

The same groups, model and loss three ways in turns, forward and backward on one thread: trees, as
the trainer computes them; *padded*, whole trajectories in padded micro-batches of a group; and
*packed*, whole trajectories in a row without padding. All three encode each distinct image once; a
fourth, *alone*, is padded and encodes the images of every trajectory for itself, as trainers
usually do. The gradients are compared before anything is timed. The figure is trees against the
better of padded and packed; beside it stands the bound that the numbers of tokens give, if a token
cost the same everywhere.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.groups import Shape, training_samples
from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, Spread, measure_calls
from benchmarks.services import CHECKPOINT
from services.trainer.batch import collate, collect_images
from services.trainer.images import ImageSource
from services.trainer.loss import ClipRange, Loss, Objective, token_loss
from services.trainer.model import Policy
from services.trainer.packing import Bundle, pack_groups
from services.trainer.sample import TrainingSample
from shared.blobs import BlobStore
from tests.trainer import oracle
from tests.trainer.groups import GroupBuilder

AIM = ">= 3"
CPU = torch.device("cpu")
OBJECTIVE = Objective(
    Loss.GRPO, ClipRange(0.2, 0.28), is_cap=2.0, is_mask_beyond=math.inf, kl_beta=0.0
)
DEMO = Shape(view_px=168, num_zooms=1, thought_words=3)


def series_around(shape: Shape) -> dict[str, Shape]:
    """How the ratio grows with the group and with what it shares."""
    return {
        **{f"group of {n}": replace(shape, group_size=n) for n in (2, 4, 8, 32)},
        **{f"view of {n} px": replace(shape, view_px=n) for n in (168, 336)},
    }


class Bench:
    """One model, the groups of one shape, and three ways of computing them."""

    def __init__(self, model: Path, folder: Path, shape: Shape, num_groups: int) -> None:
        from transformers import AutoTokenizer

        self.policy = Policy.load(model, CPU)
        blobs = BlobStore(str(folder))
        self._images = ImageSource(blobs, model)
        builder = GroupBuilder(AutoTokenizer.from_pretrained(model), blobs)
        groups = training_samples(builder, self.policy.limits, num_groups, shape)
        self.groups = [
            [replace(s, token_weight=1.0 / s.num_trained_tokens) for s in group] for group in groups
        ]
        self._images.hold(span for s in self.samples for span in s.images)

    @property
    def samples(self) -> list[TrainingSample]:
        """Of all groups."""
        return [sample for group in self.groups for sample in group]

    def trees(self) -> None:
        """As the trainer does."""
        self._by_bundles(self._bundles(self.groups))

    def packed(self) -> None:
        """Whole trajectories in a row: trees of one trajectory each."""
        self._by_bundles(self._bundles([[sample] for sample in self.samples]))

    def padded(self) -> None:
        """Whole trajectories, padded to the longest of their group."""
        self._padded(share_images=True)

    def alone(self) -> None:
        """The same, each trajectory with its images."""
        self._padded(share_images=False)

    def _padded(self, *, share_images: bool) -> None:
        for group in self.groups:
            batch = oracle.collate(
                group,
                [sample.token_weight for sample in group],
                self._images,
                image_token_id=self.policy.limits.image_token_id,
                device=CPU,
                share_images=share_images,
            )
            self._loss(oracle.padded_logprobs(self.policy, batch), batch).backward()

    def gradient(self, way: str) -> torch.Tensor:
        """Of one way, all parameters in a row."""
        self.policy.zero_grad()
        getattr(self, way)()
        grads = [p.grad for p in self.policy.parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in grads])

    def token_ratio(self) -> float:
        """Tokens of all trajectories over distinct ones."""
        whole = sum(len(sample.input_ids) for sample in self.samples)
        packs = [pack for bundle in self._bundles(self.groups) for pack in bundle]
        return whole / sum(tree.num_tokens for pack in packs for tree in pack)

    def _bundles(self, groups: list[list[TrainingSample]]) -> list[Bundle]:
        return pack_groups(groups, self.policy.limits.image_token_id, 16_384)

    def _by_bundles(self, bundles: list[Bundle]) -> None:
        for bundle in bundles:
            shown = collect_images(bundle, self._images, CPU)
            features = self.policy.image_features(shown)
            assert features is not None
            leaf = features.detach().requires_grad_()
            for pack in bundle:
                pad = self.policy.limits.image_token_id
                tensors = collate(pack, shown.rows_by_name, image_token_id=pad, device=CPU)
                self._loss(self.policy.trained_logprobs(tensors, leaf), tensors).backward()
            features.backward(leaf.grad)

    def _loss(self, logprobs_N: torch.Tensor, batch: Any) -> torch.Tensor:
        terms = token_loss(
            logprobs_N,
            old_logprobs_N=logprobs_N.detach(),
            sampled_logprobs_N=batch.sampled_logprobs_N,
            ref_logprobs_N=None,
            advantages_N=batch.advantages_N,
            trajectory_N=batch.trajectory_N,
            objective=OBJECTIVE,
        )
        return (terms.loss_N * batch.weights_N).sum()


@dataclass(frozen=True)
class Measured:
    """Seconds of each way beside trees."""

    padded: Pairs
    packed: Pairs
    alone: Pairs
    num_trajectories: int
    token_ratio: float
    difference: float
    """‖Δg‖/‖g‖ of trees against padded."""

    @property
    def ratio(self) -> Spread:
        """Trees against the better of the others."""
        return min(self.padded.ratio(), self.packed.ratio(), key=lambda spread: spread.median)

    def detail(self) -> dict[str, Any]:
        """What helps to read it."""
        trees_s = self.padded.times()[1]
        return {
            "ratio": self.ratio.as_list(),
            "ratio_to_padded": self.padded.ratio().as_list(),
            "ratio_to_packed": self.packed.ratio().as_list(),
            "ratio_to_alone": self.alone.ratio().as_list(),
            "tokens_one_by_one_over_distinct": self.token_ratio,
            "trees_s": trees_s.as_list(),
            "trajectories_per_s": self.num_trajectories / trees_s.median,
            "gradient_difference": self.difference,
        }


def measure(args: argparse.Namespace, shape: Shape, num_groups: int, title: str) -> Measured:
    """All three ways. Exits if their gradients differ."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.model, Path(folder), shape, num_groups)
        expected = bench.gradient("padded")
        difference = 0.0
        for way in ("trees", "packed", "alone"):
            off = float((bench.gradient(way) - expected).norm() / expected.norm())
            difference = max(difference, off)
            if off > 1e-4:
                raise SystemExit(f"error: the gradient of {way} is off by {off:.1e} ({title})")

        def against(way: str) -> Pairs:
            return measure_calls(
                lambda: bench.gradient(way),
                lambda: bench.gradient("trees"),
                repeats=args.repeats,
                title=f"{title}, {way}",
            )

        return Measured(
            padded=against("padded"),
            packed=against("packed"),
            alone=against("alone"),
            num_trajectories=len(bench.samples),
            token_ratio=bench.token_ratio(),
            difference=difference,
        )


def run(args: argparse.Namespace) -> Outcome:
    """All shapes."""
    torch.set_num_threads(1)
    shape = Shape(args.view_px, args.crop_px, args.group_size, args.zooms, args.thought_words)
    large = measure(args, shape, args.groups, f"{args.view_px} px")
    others = {"the demo's shape": (DEMO, 4 * args.groups)}
    others |= {name: (shape, 1) for name, shape in series_around(shape).items()}
    others = {} if args.brief else others
    once = argparse.Namespace(**{**vars(args), "repeats": 1})
    measured = {name: measure(once, *what, name) for name, what in others.items()}
    unit = "x the better of padded and packed"
    return make_outcome(
        Figure("trainer", large.ratio.median, unit, AIM),
        also=[
            Figure("trainer, images per trajectory", large.alone.ratio().median, "x padded"),
            Figure("trainer, tokens", large.token_ratio, "x fewer"),
            *(Figure(f"trainer, {name}", m.ratio.median, unit) for name, m in measured.items()),
        ],
        detail={
            "clock": "processor time of the thread",
            "shape": asdict(shape),
            "judged": large.detail(),
            **{name: m.detail() for name, m in measured.items()},
            "repeats": args.repeats,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.trainer", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="pairs per way; other shapes have 1")
    parser.add_argument("--groups", type=int, default=1, help="in one step")
    parser.add_argument("--view-px", type=int, default=672)
    parser.add_argument("--crop-px", type=int, default=168)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--zooms", type=int, default=2, help="of each trajectory")
    parser.add_argument("--thought-words", type=int, default=40, help="before each call and answer")
    parser.add_argument("--brief", action="store_true", help="without other shapes")
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    print_outcome(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
