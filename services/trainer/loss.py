"""METHOD.md's GRPO, one pure function per formula.

Shapes: `_N` runs over all trained tokens of some trajectories, concatenated; log-probabilities are
in nats. π_θ is the policy being trained, π_old the trainer's own view of the policy before the
batch's first update, μ the engine's distribution the tokens were sampled from, π_ref the initial
policy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a group's standard deviation before dividing."""

EQUAL_REWARDS = 1e-9
"""Rewards closer together than this are equal: their group carries no signal."""


class ClipRange(NamedTuple):
    """The ratio π_θ/π_old is clipped to [1 − low, 1 + high]."""

    low: float
    high: float


class TokenLoss(NamedTuple):
    """Per-token terms, each of shape (N,); only `loss_N` carries a gradient."""

    loss_N: Tensor
    kl_reference_N: Tensor
    mismatch_kl_N: Tensor
    is_clipped_N: Tensor
    is_capped_N: Tensor


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether a group's rewards differ: if not, all its advantages are 0."""
    return max(rewards) - min(rewards) > EQUAL_REWARDS


def group_advantages(rewards: Sequence[float], *, divide: bool) -> list[float]:
    """A_i = (R_i − mean R) / (std R + 1e-4), std with ddof 1; without division A_i = R_i − mean R.

    A group of one has no spread: its advantage is 0.
    """
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not divide or len(rewards) < 2:
        return centred
    std = math.sqrt(math.fsum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (std + STD_FLOOR) for c in centred]


def token_weights(num_trained_tokens: Sequence[int]) -> list[float]:
    """Weight of each token of each trajectory: mean over its tokens, then over trajectories.

    w_i = 1 / (B · T_i), with B the trajectories of the whole optimizer batch: counted before
    packing, so that the split of a batch does not change its gradient.
    """
    num_trajectories = len(num_trained_tokens)
    return [1.0 / (num_trajectories * tokens) for tokens in num_trained_tokens]


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """k3(p‖q) = q/p − ln(q/p) − 1 per token drawn from p: KL(p‖q), unbiased, never negative.

    `logprobs_N` is ln p, `other_logprobs_N` ln q.
    """
    log_ratio_N = other_logprobs_N - logprobs_N
    return torch.exp(log_ratio_N) - log_ratio_N - 1.0


def importance_weights(old_logprobs_N: Tensor, sampled_logprobs_N: Tensor, cap: float) -> Tensor:
    """c = min(π_old/μ, cap), detached: corrects for the engine not being the trainer."""
    return torch.exp(old_logprobs_N - sampled_logprobs_N).clamp(max=cap).detach()


def clipped_objective(
    ratio_N: Tensor, advantages_N: Tensor, clip: ClipRange
) -> tuple[Tensor, Tensor]:
    """min(rA, clip(r, 1−low, 1+high)·A), and where the clipped branch was the smaller one."""
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1.0 - clip.low, 1.0 + clip.high) * advantages_N
    return torch.minimum(plain_N, clipped_N), clipped_N < plain_N


def token_loss(
    trainer_logprobs_N: Tensor,
    *,
    old_logprobs_N: Tensor,
    sampled_logprobs_N: Tensor,
    ref_logprobs_N: Tensor | None,
    advantages_N: Tensor,
    clip: ClipRange,
    is_cap: float,
    kl_beta: float,
) -> TokenLoss:
    """L = −c · min(rA, clip(r)·A) + β · k3(π_θ‖π_ref) per token, r = π_θ/π_old.

    With one update per batch the caller passes `trainer_logprobs_N.detach()` as old: r is 1, its
    gradient is that of ln π_θ, and clipping is inert. `ref_logprobs_N` is None when β is 0.
    """
    ratio_N = torch.exp(trainer_logprobs_N - old_logprobs_N)
    weights_N = importance_weights(old_logprobs_N, sampled_logprobs_N, is_cap)
    objective_N, is_clipped_N = clipped_objective(ratio_N, advantages_N, clip)
    loss_N = -weights_N * objective_N
    if ref_logprobs_N is None:
        kl_reference_N = torch.zeros_like(loss_N)
    else:
        kl_reference_N = k3(trainer_logprobs_N, ref_logprobs_N)
        loss_N = loss_N + kl_beta * kl_reference_N
    return TokenLoss(
        loss_N=loss_N,
        kl_reference_N=kl_reference_N.detach(),
        mismatch_kl_N=k3(sampled_logprobs_N, old_logprobs_N).detach(),
        is_clipped_N=is_clipped_N.detach(),
        is_capped_N=(torch.exp(old_logprobs_N - sampled_logprobs_N) > is_cap).detach(),
    )
