"""Policy-gradient losses on groups, one pure function per formula: METHOD.md's GRPO and its kin.

| loss | ratio and clip | weight of a token | advantage | source |
|---|---|---|---|---|
| `grpo` | per token | 1 / (B · T_i) | divided by std | METHOD.md, GRPO; arXiv 2402.03300, eq. 3 |
| `dr_grpo` | per token | 1 / (B · constant) | never divided | arXiv 2503.20783, section 3.2 |
| `dapo` | per token | 1 / ΣT_i | divided by std | arXiv 2503.14476, eq. 8 |
| `gspo` | per trajectory | 1 / (B · T_i) | divided by std | arXiv 2507.18071, eq. 5 and 7 |

Shapes: `_N` runs over all trained tokens of some trajectories, concatenated; log-probabilities are
in nats. π_θ is the policy being trained, π_old the trainer's own view of the policy before the
batch's first update, μ the engine's distribution the tokens were sampled from, π_ref the initial
policy.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a group's standard deviation before dividing."""

EQUAL_REWARDS = 1e-9
"""Rewards closer together than this are equal: their group carries no signal."""


class Loss(StrEnum):
    """Which of them."""

    GRPO = "grpo"
    DR_GRPO = "dr_grpo"
    DAPO = "dapo"
    GSPO = "gspo"


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


def token_weights(
    num_trained_tokens: Sequence[int], loss: Loss = Loss.GRPO, *, constant: int = 1
) -> list[float]:
    """Weight of each token of each trajectory, counted before the batch is cut up.

    So the cut does not change the gradient. B is the trajectories of the whole optimizer batch,
    T_i the trained tokens of one; `constant` takes the place of T_i in Dr. GRPO, which would
    otherwise favour long wrong answers over short ones.
    """
    num_trajectories, num_tokens = len(num_trained_tokens), sum(num_trained_tokens)
    match loss:
        case Loss.DAPO:
            return [1.0 / num_tokens] * num_trajectories
        case Loss.DR_GRPO:
            return [1.0 / (num_trajectories * constant)] * num_trajectories
        case Loss.GRPO | Loss.GSPO:
            return [1.0 / (num_trajectories * tokens) for tokens in num_trained_tokens]


def sequence_ratio(log_ratio_N: Tensor, trajectory_N: Tensor) -> Tensor:
    """GSPO's s_i = exp(1/T_i · Σ_t ln π_θ/π_old), at every token of trajectory i, (N,).

    With weights 1/(B · T_i) the sum over its tokens is the objective of the trajectory over B.
    """
    num_trajectories = int(trajectory_N[-1]) + 1
    totals = log_ratio_N.new_zeros(num_trajectories).index_add(0, trajectory_N, log_ratio_N)
    counts = torch.bincount(trajectory_N, minlength=num_trajectories)
    return torch.exp(totals / counts)[trajectory_N]


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """k3(p‖q) = q/p − ln(q/p) − 1 per token drawn from p: KL(p‖q), unbiased, never negative.

    `logprobs_N` is ln p, `other_logprobs_N` ln q.
    """
    log_ratio_N = other_logprobs_N - logprobs_N
    return torch.exp(log_ratio_N) - log_ratio_N - 1.0


def importance_weights(
    old_logprobs_N: Tensor, sampled_logprobs_N: Tensor, cap: float, *, mask: bool = False
) -> Tensor:
    """c = min(π_old/μ, cap), detached: corrects for the engine not being the trainer.

    With `mask`, 0 where π_old/μ lies outside [1/cap, cap]: such tokens are not trained at all.
    """
    mismatch_N = torch.exp(old_logprobs_N - sampled_logprobs_N).detach()
    weights_N = mismatch_N.clamp(max=cap)
    if not mask:
        return weights_N
    is_near_N = (mismatch_N <= cap) & (mismatch_N >= 1.0 / cap)
    return torch.where(is_near_N, weights_N, 0.0)


def clipped_objective(
    ratio_N: Tensor, advantages_N: Tensor, clip: ClipRange
) -> tuple[Tensor, Tensor]:
    """min(rA, clip(r, 1−low, 1+high)·A), and where the clipped branch was the smaller one."""
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1.0 - clip.low, 1.0 + clip.high) * advantages_N
    return torch.minimum(plain_N, clipped_N), clipped_N < plain_N


class Objective(NamedTuple):
    """Which loss, and its knobs."""

    loss: Loss
    clip: ClipRange
    is_cap: float
    """Cap of π_old/μ."""
    is_mask: bool
    """Leave tokens beyond the cap out, on either side."""
    kl_beta: float


def token_loss(
    trainer_logprobs_N: Tensor,
    *,
    old_logprobs_N: Tensor,
    sampled_logprobs_N: Tensor,
    ref_logprobs_N: Tensor | None,
    advantages_N: Tensor,
    trajectory_N: Tensor,
    objective: Objective,
) -> TokenLoss:
    """L = −c · min(rA, clip(r)·A) + β · k3(π_θ‖π_ref) per token, r = π_θ/π_old.

    With one update per batch the caller passes `trainer_logprobs_N.detach()` as old: r is 1, its
    gradient is that of ln π_θ, and clipping is inert. `ref_logprobs_N` is None when β is 0.
    """
    log_ratio_N = trainer_logprobs_N - old_logprobs_N
    if objective.loss is Loss.GSPO:
        ratio_N = sequence_ratio(log_ratio_N, trajectory_N)
    else:
        ratio_N = torch.exp(log_ratio_N)
    weights_N = importance_weights(
        old_logprobs_N, sampled_logprobs_N, objective.is_cap, mask=objective.is_mask
    )
    objective_N, is_clipped_N = clipped_objective(ratio_N, advantages_N, objective.clip)
    loss_N = -weights_N * objective_N
    if ref_logprobs_N is None:
        kl_reference_N = torch.zeros_like(loss_N)
    else:
        kl_reference_N = k3(trainer_logprobs_N, ref_logprobs_N)
        loss_N = loss_N + objective.kl_beta * kl_reference_N
    mismatch_N = torch.exp(old_logprobs_N - sampled_logprobs_N)
    return TokenLoss(
        loss_N=loss_N,
        kl_reference_N=kl_reference_N.detach(),
        mismatch_kl_N=k3(sampled_logprobs_N, old_logprobs_N).detach(),
        is_clipped_N=is_clipped_N.detach(),
        is_capped_N=(mismatch_N > objective.is_cap).detach(),
    )
