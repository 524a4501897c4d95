"""An optimizer batch, dealt to the ranks by what each part costs.

Weights are counted over the whole batch before it is dealt, so that the sum of the ranks' gradients
is the gradient of the batch. A group stays on one rank, where its prefix is computed once; only one
that is larger than a rank's fair share is split, by trajectories, and its prefix computed on each
rank that has a part. What a part costs is its distinct tokens, image tokens among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from services.trainer.loss import Loss, token_weights
from services.trainer.packing import split
from services.trainer.sample import TrainingSample
from services.trainer.tree import num_new_tokens

Samples = list[TrainingSample]
Pixels = Mapping[str, npt.NDArray[np.uint8]]


@dataclass(slots=True)
class Share:
    """What one rank computes of an optimizer batch."""

    step: int
    """Steps taken before it."""
    total_weight: float
    """Sum of the whole batch's token weights."""
    groups: list[Samples] = field(default_factory=list)
    """Groups, or trajectories of a group, with their token weights."""
    pixels: Pixels = field(default_factory=dict)
    """By name the images they show."""


def weigh(groups: Sequence[Sequence[TrainingSample]], loss: Loss, constant: int) -> list[Samples]:
    """The samples of an optimizer batch with their token weights."""
    counts = [sample.num_trained_tokens for samples in groups for sample in samples]
    weights = iter(token_weights(counts, loss, constant=constant))
    return [[replace(s, token_weight=next(weights)) for s in samples] for samples in groups]


def total_weight(groups: Sequence[Samples]) -> float:
    """Sum over all trained tokens; 1 but for Dr. GRPO."""
    return sum(s.token_weight * s.num_trained_tokens for samples in groups for s in samples)


def deal(groups: Sequence[Samples], num_ranks: int) -> list[list[Samples]]:
    """One list of groups for each rank: largest first, each to the rank with least so far."""
    if num_ranks == 1:
        return [list(groups)]
    fair_share = -(-sum(_cost(samples) for samples in groups) // num_ranks)
    parts = [part for samples in groups for part in split(samples, fair_share)]
    dealt: list[list[Samples]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for part in sorted(parts, key=_cost, reverse=True):
        rank = loads.index(min(loads))
        dealt[rank].append(part)
        loads[rank] += _cost(part)
    return dealt


def _cost(samples: Samples) -> int:
    return sum(num_new_tokens(samples))
