# pyright: basic
"""`python -m benchmarks.trainer_gpu`: a step of Qwen2.5-VL-3B and 7B on one CUDA device.

The published shapes with random weights, bfloat16 throughout, made on the device; groups with a
672 px view, two zooms and thoughts of so many words. 3B is trained whole: forward, backward and
AdamW. 7B trains LoRA adapters on the linear layers of its text blocks. Both recompute their blocks
in the backward pass unless told otherwise.

Trees against packed trajectories, each distinct image encoded once in both, in turns and after one
round that is not counted (FlexAttention compiles in it). MFU is the arithmetic of what is computed
(`benchmarks.arithmetic`), recomputation left out, over time and the device's dense bfloat16 peak.

`--device cpu --shape tiny` runs the same on two cores in seconds, in float32, to see that it works.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs
from benchmarks.results import FOLDER as RESULTS
from benchmarks.results import Measured, write_result
from shared.progress import progress

if TYPE_CHECKING:
    from benchmarks.qwen_step import Device

NAME = "trainer_gpu"
NEEDS_CUDA = (
    "error: benchmarks.trainer_gpu needs a CUDA device, and torch sees none here; "
    "`--device cpu --shape tiny` runs all of it in small"
)
_NO_NUMBERS = ("device", "shape", "results")


def measure(size: str, device: "Device", args: argparse.Namespace) -> dict[str, Any]:
    """Both ways of one size, in turns; nothing of it is left on the device."""
    from benchmarks.qwen_step import WAYS, Step

    with tempfile.TemporaryDirectory() as folder:
        step = Step(size, device, args, Path(folder))
        numbers = {way: step.numbers(way) for way in WAYS}
        for way in WAYS:  # compiles, and finds the peak of each
            device.forget_peak()
            step.take(way, numbers[way])
            numbers[way].peak_gib = device.peak_gib()
        for repeat in progress(range(args.repeats), title=size, unit="pair"):
            for way in WAYS if repeat % 2 == 0 else WAYS[::-1]:
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
            **{way: numbers[way].detail(step.num_trajectories, device.peak_tflops) for way in WAYS},
        }


def run(args: argparse.Namespace, device: "Device") -> Outcome:
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
    parser.add_argument("--repeats", type=int, default=3, help="pairs of each size")
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
    from benchmarks.qwen_step import Device

    device = Device(args.device, args.peak_tflops)
    outcome = run(args, device)
    measured = Measured.now(outcome)
    machine = f"{device.name} beside {measured.machine}"
    write_result(args.results, NAME, msgspec.structs.replace(measured, machine=machine))
    print_outcome(outcome)


if __name__ == "__main__":
    main()
