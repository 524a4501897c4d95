# pyright: basic
"""`python -m benchmarks.trainer_gpu`: a step of Qwen2.5-VL-3B and 7B on one CUDA device.

The published shapes with random weights, bfloat16 throughout, made on the device; groups with a
672 px view, two zooms and thoughts of so many words. 3B is trained whole: forward, backward and
AdamW. 7B trains LoRA adapters on the linear layers of its text blocks. Both recompute their blocks
in the backward pass unless told otherwise.

Trees against packed trajectories, each distinct image encoded once in both, in turns and after one
round that is not counted (FlexAttention compiles in it). MFU is the arithmetic of what is computed
(`benchmarks.arithmetic`), recomputation left out, over time and the device's dense bfloat16 peak.
The trajectories' log-probabilities under the engine are set so low that c is its cap everywhere:
random weights say nothing of them.

`--device cpu --shape tiny` runs the same on two cores in seconds, in float32, to see that it works.
"""

import argparse
import gc
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, Spread
from benchmarks.results import FOLDER as RESULTS
from benchmarks.results import Measured, write_result
from shared.progress import progress

NAME = "trainer_gpu"
NEEDS_CUDA = (
    "error: benchmarks.trainer_gpu needs a CUDA device, and torch sees none here; "
    "`--device cpu --shape tiny` runs all of it in small"
)
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bfloat16, as the makers state it (SXM cards), by a part of the device's name."""
_WAYS = ("packed", "trees")
_NO_NUMBERS = ("device", "shape", "results")


class Device:
    """Clock and memory of what is computed on."""

    def __init__(self, name: str, peak_tflops: float | None) -> None:
        self.torch = torch.device(name)
        self.is_cuda = self.torch.type == "cuda"
        self.name = torch.cuda.get_device_name(self.torch) if self.is_cuda else "CPU"
        known = (peak for part, peak in PEAK_TFLOPS.items() if part in self.name)
        self.peak_tflops = peak_tflops or next(known, None)
        self.dtype = torch.bfloat16 if self.is_cuda else torch.float32

    def seconds(self, call: Callable[[], object]) -> float:
        """What a call takes, all that it started included."""
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.torch)

    def peak_gib(self) -> float:
        """Most memory held since then; on CPU, by the process in all its life."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)


@dataclass
class Numbers:
    """Of one way of one size."""

    seconds: list[float]
    flops: float
    num_tokens: int
    peak_gib: float = 0.0
    grad_norm: float = math.nan
    mean_logprob: float = math.nan
    """Of the trained tokens: the same for all ways, but for rounding."""

    def detail(self, num_trajectories: int, peak_tflops: float | None) -> dict[str, Any]:
        """What helps to read it."""
        took = Spread.of(self.seconds)
        return {
            "seconds": took.as_list(),
            "trajectories_per_s": num_trajectories / took.median,
            "tokens": self.num_tokens,
            "tflops_per_s": self.flops / took.median / 1e12,
            "mfu": peak_tflops and self.flops / took.median / 1e12 / peak_tflops,
            "peak_memory_gib": self.peak_gib,
            "grad_norm": self.grad_norm,
            "mean_logprob": self.mean_logprob,
        }


class Step:
    """A model of one size, groups, and an optimizer step on them."""

    def __init__(self, size: str, device: Device, args: argparse.Namespace, folder: Path) -> None:
        from transformers import AutoTokenizer

        from benchmarks.groups import MadeUp, Shape, training_samples
        from benchmarks.qwen import Size, config_of, random_model
        from benchmarks.services import CHECKPOINT
        from services.trainer.dry_run.shape import shape_of
        from services.trainer.images import ImageSource
        from services.trainer.model import Policy, fit_for_trees, read_limits
        from services.trainer.optimizer import build_optimizer
        from shared.blobs import BlobStore

        self.device = device
        config = config_of(Size(size), AutoTokenizer.from_pretrained(CHECKPOINT))
        self.shape = shape_of(config)
        model = random_model(config, device.torch, device.dtype)
        fit_for_trees(model)
        self.is_lora = size == Size.QWEN_7B or args.lora
        if self.is_lora:
            train_adapters_only(model, args.lora_rank)
        if not args.no_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        limits = read_limits(CHECKPOINT, model)
        # float32 means no autocast: the weights are of the width they are computed in.
        self.policy = Policy(model, limits, torch.float32).to(device.torch)
        self.optimizer = build_optimizer(self.policy, lr=1e-6, weight_decay=0.0)
        shape = Shape(args.view_px, args.crop_px, args.group_size, args.zooms, args.thought_words)
        blobs = BlobStore(str(folder))
        groups = MadeUp(shape, args.groups).groups(CHECKPOINT, blobs)
        built = [training_samples(group, limits) for group in groups]
        num = sum(map(len, built))
        self.groups = [[_weighted(sample, num) for sample in samples] for samples in built]
        self.images = ImageSource(blobs, CHECKPOINT)
        self.images.hold(span for group in self.groups for s in group for span in s.images)
        self.pack_tokens = args.pack_tokens

    @property
    def num_trajectories(self) -> int:
        """Of all groups."""
        return sum(map(len, self.groups))

    def bundles(self, way: str) -> list[Any]:
        """Packs of one way."""
        from services.trainer.packing import pack_groups

        groups = self.groups
        if way == "packed":
            groups = [[sample] for group in groups for sample in group]
        return pack_groups(groups, self.policy.limits.image_token_id, self.pack_tokens)

    def numbers(self, way: str) -> Numbers:
        """Of one way, before anything was timed."""
        from benchmarks.arithmetic import step_flops

        bundles = self.bundles(way)
        return Numbers(
            seconds=[],
            flops=step_flops(self.shape, self.groups, bundles, lora=self.is_lora).total,
            num_tokens=sum(tree.num_tokens for b in bundles for pack in b for tree in pack),
        )

    def take(self, way: str, numbers: Numbers) -> None:
        """One whole step: batches, forward, backward, update."""
        from services.trainer.optimizer import apply_gradient

        total = sum(self._backward(bundle) for bundle in self.bundles(way))
        numbers.mean_logprob = total
        numbers.grad_norm = apply_gradient(self.policy, self.optimizer, lr=0.0, max_norm=1.0)

    def _backward(self, bundle: Any) -> float:
        """Of all packs of a bundle; their share of the mean log-probability."""
        from services.trainer.batch import collate, collect_images

        device = self.device.torch
        shown = collect_images(bundle, self.images, device)
        shown = replace(shown, pixel_values=shown.pixel_values.to(self.device.dtype))
        features = self.policy.image_features(shown)
        assert features is not None
        leaf = features.detach().requires_grad_(features.requires_grad)
        total = 0.0
        for pack in bundle:
            tensors = collate(
                pack,
                shown.rows_by_name,
                image_token_id=self.policy.limits.image_token_id,
                device=device,
            )
            logprobs_N = self.policy.trained_logprobs(tensors, leaf)
            _loss(logprobs_N, tensors).backward()
            total += float((logprobs_N.detach() * tensors.weights_N).sum())
        if leaf.grad is not None:
            features.backward(leaf.grad)
        return total


def train_adapters_only(model: Any, rank: int) -> None:
    """LoRA on the linear layers of the text blocks; all else stays as it is."""
    from peft import LoraConfig

    layers = r".*language_model\.layers\..*\.(q|k|v|o|gate|up|down)_proj"
    model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), "medvr")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name


def _weighted(sample: Any, num_trajectories: int) -> Any:
    """With its weight in the step; the engine's log-probabilities as low as the docstring says."""
    weight = 1.0 / (num_trajectories * sample.num_trained_tokens)
    lowest = [-50.0] * sample.num_trained_tokens
    return replace(sample, token_weight=weight, sampled_logprobs=lowest)


def _loss(logprobs_N: torch.Tensor, batch: Any) -> torch.Tensor:
    from services.trainer.loss import ClipRange, Loss, Objective, token_loss

    terms = token_loss(
        logprobs_N,
        old_logprobs_N=logprobs_N.detach(),
        sampled_logprobs_N=batch.sampled_logprobs_N,
        ref_logprobs_N=None,
        advantages_N=batch.advantages_N,
        trajectory_N=batch.trajectory_N,
        objective=Objective(Loss.GRPO, ClipRange(0.2, 0.28), 2.0, math.inf, 0.0),
    )
    return (terms.loss_N * batch.weights_N).sum()


def measure(size: str, device: Device, args: argparse.Namespace) -> dict[str, Any]:
    """Both ways of one size, in turns; nothing of it is left on the device."""
    with tempfile.TemporaryDirectory() as folder:
        step = Step(size, device, args, Path(folder))
        numbers = {way: step.numbers(way) for way in _WAYS}
        for way in _WAYS:  # compiles, and finds the peak of each
            device.forget_peak()
            step.take(way, numbers[way])
            numbers[way].peak_gib = device.peak_gib()
        for repeat in progress(range(args.repeats), title=size, unit="pair"):
            for way in _WAYS if repeat % 2 == 0 else _WAYS[::-1]:
                took = device.seconds(lambda way=way: step.take(way, numbers[way]))
                numbers[way].seconds.append(took)
        pairs = Pairs(numbers["packed"].seconds, numbers["trees"].seconds)
        return {
            "ratio": pairs.ratio().as_list(),
            "tokens": numbers["packed"].num_tokens / numbers["trees"].num_tokens,
            "flops": numbers["packed"].flops / numbers["trees"].flops,
            "parameters": step.shape.parameters,
            "trained_parameters": sum(
                p.numel() for p in step.policy.parameters() if p.requires_grad
            ),
            "trajectories": step.num_trajectories,
            **{
                way: numbers[way].detail(step.num_trajectories, device.peak_tflops) for way in _WAYS
            },
        }


def run(args: argparse.Namespace, device: Device) -> Outcome:
    """All sizes."""
    by_size: dict[str, dict[str, Any]] = {}
    for size in args.shape:
        by_size[size] = measure(size, device, args)
        device.forget_peak()
    figures = [figure for size, found in by_size.items() for figure in _figures(size, found)]
    return make_outcome(
        figures[0],
        also=figures[1:],
        detail={
            "device": device.name,
            "peak_tflops": device.peak_tflops,
            "dtype": str(device.dtype),
            "torch": str(torch.__version__),
            **by_size,
            **{name: value for name, value in vars(args).items() if name not in _NO_NUMBERS},
        },
    )


def _figures(size: str, found: dict[str, Any]) -> list[Figure]:
    trees = found["trees"]
    figures = [
        Figure(f"trainer on CUDA, {size}", found["ratio"][0], "x packed"),
        Figure(f"trainer on CUDA, {size}, step", trees["seconds"][0], "s"),
        Figure(f"trainer on CUDA, {size}, memory", trees["peak_memory_gib"], "GiB"),
    ]
    if trees["mfu"] is not None:
        figures.append(Figure(f"trainer on CUDA, {size}, MFU", trees["mfu"], "of the peak"))
    return figures


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="benchmarks.trainer_gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", nargs="+", choices=["3b", "7b", "tiny"], default=["3b", "7b"])
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each size")
    parser.add_argument("--groups", type=int, default=1, help="in one step")
    parser.add_argument("--view-px", type=int, default=672)
    parser.add_argument("--crop-px", type=int, default=168)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--zooms", type=int, default=2, help="of each trajectory")
    parser.add_argument("--thought-words", type=int, default=40, help="before each call and answer")
    parser.add_argument("--pack-tokens", type=int, default=16_384)
    parser.add_argument("--lora", action="store_true", help="adapters for all sizes, not 7B alone")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--peak-tflops", type=float, help="of a device that is not known here")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result's file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(NEEDS_CUDA, file=sys.stderr)
        sys.exit(2)
    device = Device(args.device, args.peak_tflops)
    outcome = run(args, device)
    measured = Measured.now(outcome)
    machine = f"{device.name} beside {measured.machine}"
    write_result(args.results, NAME, msgspec.structs.replace(measured, machine=machine))
    print_outcome(outcome)


if __name__ == "__main__":
    main()
