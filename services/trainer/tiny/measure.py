"""What a tiny policy does on probes (brain phantoms): the numbers in its manifest."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.sampling import Sampled, sample
from services.trainer.tiny.scenes import Probe
from services.trainer.tiny.sequences import Speller
from shared.agent.tools import Tool
from shared.geometry import Box

LARGEST_HIT_SHARE = 1 / 9
"""A box larger than this share of the image hits nothing (docs/METHOD.md, What the paper shows)."""


@dataclass(frozen=True)
class ProbeMetrics:
    """Shares over sampled trajectories at temperature 1."""

    num_trajectories: int
    well_formed: float
    """Zoomed once and answered, in the taught form."""
    hit_rate: float
    """The lesion's centre inside a box no larger than a ninth of the image."""
    accuracy: float
    reading_accuracy: float
    """Right letters among the hits; 0 without a hit."""


def is_hit(sampled: Sampled, true_box: Box, image_area_px: int) -> bool:
    """Whether a trajectory's box holds the lesion's centre and is small enough."""
    if sampled.box is None or sampled.box.area_px > LARGEST_HIT_SHARE * image_area_px:
        return False
    return sampled.box.contains((true_box.x1 + true_box.x2) / 2, (true_box.y1 + true_box.y2) / 2)


def measure(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    options: tuple[str, ...],
    probes: Sequence[Probe],
    *,
    tools: Sequence[Tool],
    samples_per_probe: int,
    seed: int,
) -> ProbeMetrics:
    """Sample and count."""
    speller = Speller(tokenizer, question, options, tools=tools)
    pictures = [Image.open(io.BytesIO(probe.image_png)).convert("RGB") for probe in probes]
    generator = torch.Generator().manual_seed(seed)
    repeated = [p for p in range(len(probes)) for _ in range(samples_per_probe)]
    sampled = sample(model, speller, [pictures[p] for p in repeated], generator)
    hits, rights = [], []
    for trajectory, p in zip(sampled, repeated, strict=True):
        area_px = pictures[p].width * pictures[p].height
        hits.append(is_hit(trajectory, Box(*probes[p].true_box), area_px))
        rights.append(trajectory.answer == probes[p].answer)
    read = [right for right, hit in zip(rights, hits, strict=True) if hit]
    return ProbeMetrics(
        num_trajectories=len(sampled),
        well_formed=_share([trajectory.well_formed for trajectory in sampled]),
        hit_rate=_share(hits),
        accuracy=_share(rights),
        reading_accuracy=_share(read),
    )


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
