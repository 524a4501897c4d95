# pyright: basic
"""An optimizer step of a Qwen of one size with random weights, and what it takes.

The trajectories' log-probabilities under the engine are set so low that c is its cap everywhere:
random weights say nothing of them.
"""

import argparse
import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.arithmetic import step_flops
from benchmarks.groups import MadeUp, Shape, training_samples
from benchmarks.pairs import Spread
from benchmarks.plain_loss import plain_loss
from benchmarks.qwen import Size, config_of, random_model
from benchmarks.services import CHECKPOINT
from services.trainer.batch import collate, collect_images
from services.trainer.dry_run.shape import shape_of
from services.trainer.images import ImageSource
from services.trainer.model import Policy, fit_for_trees, read_limits
from services.trainer.optimizer import apply_gradient, build_optimizer
from services.trainer.packing import Bundle, pack_groups
from services.trainer.sample import TrainingSample
from shared.blobs import BlobStore

WAYS = ("packed", "trees")
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bfloat16, as the makers state it (SXM cards), by a part of the device's name."""
_ENGINE_LOGPROB = -50.0


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
        self.device = device
        config = config_of(Size(size), AutoTokenizer.from_pretrained(CHECKPOINT))
        self.shape = shape_of(config)
        model = random_model(config, device.torch, device.dtype)
        fit_for_trees(model)
        self.is_lora = size == Size.QWEN_7B or args.lora
        if not args.no_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        limits = read_limits(CHECKPOINT, model)
        # float32 means no autocast: all weights are of the width they are computed in.
        width = device.dtype if self.is_lora else torch.float32
        self.policy = Policy(model, limits, width).to(device.torch)
        if self.is_lora:
            self.policy.add_adapters(args.lora_rank, 2 * args.lora_rank)
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

    def bundles(self, way: str) -> list[Bundle]:
        """Packs of one way."""
        groups = self.groups
        if way == "packed":
            groups = [[sample] for group in groups for sample in group]
        return pack_groups(groups, self.policy.limits.image_token_id, self.pack_tokens)

    def numbers(self, way: str) -> Numbers:
        """Of one way, before anything was timed."""
        bundles = self.bundles(way)
        return Numbers(
            seconds=[],
            flops=step_flops(self.shape, self.groups, bundles, lora=self.is_lora).total,
            num_tokens=sum(tree.num_tokens for b in bundles for pack in b for tree in pack),
        )

    def take(self, way: str, numbers: Numbers) -> None:
        """One whole step: batches, forward, backward, update."""
        total = sum(self._backward(bundle) for bundle in self.bundles(way))
        numbers.mean_logprob = total
        numbers.grad_norm = apply_gradient(self.policy, self.optimizer, lr=0.0, max_norm=1.0)

    def _backward(self, bundle: Bundle) -> float:
        """Of all packs of a bundle; their share of the mean log-probability."""
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
            plain_loss(logprobs_N, tensors).backward()
            total += float((logprobs_N.detach() * tensors.weights_N).sum())
        if leaf.grad is not None:
            features.backward(leaf.grad)
        return total


def _weighted(sample: TrainingSample, num_trajectories: int) -> TrainingSample:
    """With its weight in the step, and log-probabilities of the engine that are very low."""
    weight = 1.0 / (num_trajectories * sample.num_trained_tokens)
    lowest = [_ENGINE_LOGPROB] * sample.num_trained_tokens
    return replace(sample, token_weight=weight, sampled_logprobs=lowest)
