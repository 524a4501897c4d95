"""Policy-gradient losses on groups, one pure function per formula: METHOD.md's GRPO and its kin.

| loss | ratio and clip | weight of a token | advantage | source |
|---|---|---|---|---|
| `grpo` | per token | 1 / (B · T_i) | divided by std | METHOD.md, GRPO; arXiv 2402.03300, eq. 3 |
| `dr_grpo` | per token | 1 / (B · constant) | never divided | arXiv 2503.20783, section 3.2 |
| `dapo` | per token | 1 / ΣT_i | divided by std | arXiv 2503.14476, eq. 8 |
| `gspo` | per trajectory | 1 / (B · T_i) | divided by std | arXiv 2507.18071, eq. 5 and 7 |

A loss is Σ weight · term over the tokens. Weights are known before the batch is cut up and a
trajectory is never cut, so how it is cut does not change the sum. Ours: in all four, c corrects for
the engine and β adds a KL, though the papers of the last three train without one.

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
    ratio_N: Tensor
    """π_θ/π_old; with GSPO the trajectory's."""
    kl_reference_N: Tensor
    mismatch_kl_N: Tensor
    is_clipped_N: Tensor
    """With GSPO all tokens of a trajectory are, or none."""
    is_capped_N: Tensor
    """c is not π_old/μ: above the cap, or left out."""


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
    """What each token of each trajectory of an optimizer batch weighs in its loss.

    `grpo`, `gspo`: mean over a trajectory's tokens, then over trajectories. `dapo`: mean over all
    tokens; the paper's eq. 8 is about one group, and here the mean runs over all groups of the
    batch. `dr_grpo`: the published sum, over B · `constant`: no trajectory's own length may enter,
    or a long wrong answer would be punished less per token than a short one. The constant only
    scales the gradient; the paper's code has the generation budget there.
    """
    num_trajectories, num_tokens = len(num_trained_tokens), sum(num_trained_tokens)
    match loss:
        case Loss.GRPO | Loss.GSPO:
            return [1.0 / (num_trajectories * own) for own in num_trained_tokens]
        case Loss.DR_GRPO:
            return [1.0 / (num_trajectories * constant)] * num_trajectories
        case Loss.DAPO:
            return [1.0 / num_tokens] * num_trajectories


def token_ratio(trainer_logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """r_t = π_θ/π_old of every token."""
    return torch.exp(trainer_logprobs_N - old_logprobs_N)


def sequence_ratio(
    trainer_logprobs_N: Tensor, old_logprobs_N: Tensor, trajectory_N: Tensor
) -> Tensor:
    """s_i = exp(1/T_i · Σ_t ln π_θ/π_old) at every token of trajectory i; gradient s_i · ∇ln π_θ.

    GSPO's objective is 1/B · Σ_i f(s_i), with f(s) = min(s·A_i, clip(s)·A_i) and the gradient
    1/B · Σ_i f′(s_i) · s_i · 1/T_i · Σ_t ∇ln π_θ,t (eq. 5 and 7, section 4.2). Spread on tokens of
    weight 1/(B·T_i), each with the ratio of the paper's GSPO-token (section 4.3; sg: no gradient)

        ŝ_t = sg[s_i] · π_θ,t / sg[π_θ,t]

    whose value is s_i and whose gradient s_i · ∇ln π_θ,t, the sum is
    Σ_t 1/(B·T_i) · f(ŝ_t) = f(s_i)/B, and its gradient 1/(B·T_i) · Σ_t f′(s_i) · s_i · ∇ln π_θ,t:
    both the published ones. Were s_i itself put at every token, the sum would have the same
    gradient, but only while all have the same c: a token with c = 0 would still be trained, through
    the ratio of the others.
    """
    log_ratio_N = (trainer_logprobs_N - old_logprobs_N).detach()
    num_trajectories = int(trajectory_N.max()) + 1
    sums = log_ratio_N.new_zeros(num_trajectories).index_add(0, trajectory_N, log_ratio_N)
    counts = torch.bincount(trajectory_N, minlength=num_trajectories)
    s_N = torch.exp(sums / counts)[trajectory_N]
    return s_N * torch.exp(trainer_logprobs_N - trainer_logprobs_N.detach())


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """k3(p‖q) = q/p − ln(q/p) − 1 per token drawn from p: KL(p‖q), unbiased, never negative.

    `logprobs_N` is ln p, `other_logprobs_N` ln q.
    """
    log_ratio_N = other_logprobs_N - logprobs_N
    return torch.exp(log_ratio_N) - log_ratio_N - 1.0


def importance_weights(
    old_logprobs_N: Tensor, sampled_logprobs_N: Tensor, *, cap: float, mask_beyond: float
) -> tuple[Tensor, Tensor]:
    """c = min(π_old/μ, cap), and where c is not π_old/μ; detached.

    It corrects for the engine not being the trainer. Where π_old/μ lies outside
    [1/mask_beyond, mask_beyond] c is 0: engine and trainer disagree too much for the token to teach
    anything. Such tokens stay counted in the weights, which are fixed before π_old is known.
    """
    mismatch_N = torch.exp(old_logprobs_N - sampled_logprobs_N).detach()
    is_out_N = (mismatch_N < 1.0 / mask_beyond) | (mismatch_N > mask_beyond)
    weights_N = mismatch_N.clamp(max=cap).masked_fill(is_out_N, 0.0)
    return weights_N, is_out_N | (mismatch_N > cap)


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
    is_mask_beyond: float
    """c = 0 where π_old/μ lies outside [1/x, x]; infinity leaves no token out."""
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
    """L = −c · min(rA, clip(r)·A) + β · k3(π_θ‖π_ref) per token; r is the token's, GSPO's s_i.

    With one update per batch the caller passes `trainer_logprobs_N.detach()` as old: r is 1, its
    gradient is that of ln π_θ, and clipping is inert. `ref_logprobs_N` is None when β is 0.
    `trajectory_N` (int64) says to which of the trajectories at hand, each of them whole, a token
    belongs. A token that c leaves out keeps its KL.
    """
    if objective.loss is Loss.GSPO:
        ratio_N = sequence_ratio(trainer_logprobs_N, old_logprobs_N, trajectory_N)
    else:
        ratio_N = token_ratio(trainer_logprobs_N, old_logprobs_N)
    weights_N, is_capped_N = importance_weights(
        old_logprobs_N,
        sampled_logprobs_N,
        cap=objective.is_cap,
        mask_beyond=objective.is_mask_beyond,
    )
    objective_N, is_clipped_N = clipped_objective(ratio_N, advantages_N, objective.clip)
    loss_N = -weights_N * objective_N
    if ref_logprobs_N is None:
        kl_reference_N = torch.zeros_like(loss_N)
    else:
        kl_reference_N = k3(trainer_logprobs_N, ref_logprobs_N)
        loss_N = loss_N + objective.kl_beta * kl_reference_N
    return TokenLoss(
        loss_N=loss_N,
        ratio_N=ratio_N.detach(),
        kl_reference_N=kl_reference_N.detach(),
        mismatch_kl_N=k3(sampled_logprobs_N, old_logprobs_N).detach(),
        is_clipped_N=is_clipped_N.detach(),
        is_capped_N=is_capped_N,
    )
