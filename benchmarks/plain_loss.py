# pyright: basic
"""GRPO without a KL, on the log-probabilities of a pack or of a padded batch."""

import math
from typing import Any

import torch

from services.trainer.loss import ClipRange, Loss, Objective, token_loss

OBJECTIVE = Objective(
    Loss.GRPO, ClipRange(0.2, 0.28), is_cap=2.0, is_mask_beyond=math.inf, kl_beta=0.0
)


def plain_loss(logprobs_N: torch.Tensor, batch: Any) -> torch.Tensor:
    """The share of these tokens; a batch is `PackTensors` or the oracle's `MicroBatch`."""
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
