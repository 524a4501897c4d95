"""The published objectives as loops over floats, and the trainer's losses on the same tokens.

The loops share nothing with the trainer. Papers maximise an objective J; a loss is −J.
"""

import math
from dataclasses import dataclass

import torch

from services.trainer.loss import ClipRange, Loss, Objective, TokenLoss, token_loss, token_weights

LOW, HIGH, CONSTANT = 0.2, 0.28, 8


@dataclass
class Batch:
    """Trained tokens of some trajectories, (ln π_θ, ln π_old, ln μ, ln π_ref) each."""

    tokens: list[tuple[float, float, float, float]]
    lengths: list[int]
    advantages: list[float]

    def ratios(self, nudged: int | None = None, by: float = 0.0) -> list[list[float]]:
        """π_θ/π_old per trajectory, the ln π_θ of one token moved."""
        flat = [
            math.exp(theta + (by if index == nudged else 0.0) - old)
            for index, (theta, old, _, _) in enumerate(self.tokens)
        ]
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return [flat[end - n : end] for end, n in zip(ends, self.lengths, strict=True)]


def term(ratio: float, advantage: float) -> float:
    within = min(max(ratio, 1.0 - LOW), 1.0 + HIGH)
    return min(ratio * advantage, within * advantage)


def grpo(ratios: list[list[float]], advantages: list[float]) -> float:
    """Shao et al. 2024, arXiv 2402.03300, eq. 3 without its KL: 1/G Σ_i 1/|o_i| Σ_t."""
    total = 0.0
    for trajectory, advantage in zip(ratios, advantages, strict=True):
        inner = 0.0
        for ratio in trajectory:
            inner += term(ratio, advantage)
        total += inner / len(trajectory)
    return total / len(ratios)


def dr_grpo(ratios: list[list[float]], advantages: list[float]) -> float:
    """Liu et al. 2025, arXiv 2503.20783, section 3.2: 1/G Σ_i Σ_t, and their code's constant."""
    total = 0.0
    for trajectory, advantage in zip(ratios, advantages, strict=True):
        for ratio in trajectory:
            total += term(ratio, advantage)
    return total / len(ratios) / CONSTANT


def dapo(ratios: list[list[float]], advantages: list[float]) -> float:
    """Yu et al. 2025, arXiv 2503.14476, eq. 8: 1/Σ_i |o_i| Σ_i Σ_t."""
    total, num_tokens = 0.0, 0
    for trajectory, advantage in zip(ratios, advantages, strict=True):
        for ratio in trajectory:
            total += term(ratio, advantage)
            num_tokens += 1
    return total / num_tokens


def sequence_ratio_of(trajectory: list[float]) -> float:
    """Zheng et al. 2025, arXiv 2507.18071, eq. 7."""
    return math.exp(sum(math.log(ratio) for ratio in trajectory) / len(trajectory))


def gspo(ratios: list[list[float]], advantages: list[float]) -> float:
    """Zheng et al. 2025, arXiv 2507.18071, eq. 5: 1/G Σ_i min(s_i A_i, clip(s_i) A_i)."""
    total = 0.0
    for trajectory, advantage in zip(ratios, advantages, strict=True):
        total += term(sequence_ratio_of(trajectory), advantage)
    return total / len(ratios)


PUBLISHED = {Loss.GRPO: grpo, Loss.DR_GRPO: dr_grpo, Loss.DAPO: dapo, Loss.GSPO: gspo}


def published_gradient(loss: Loss, batch: Batch) -> list[float]:
    """∂J/∂ln π_θ of every token, by central differences."""
    step = 1e-6
    return [
        (
            PUBLISHED[loss](batch.ratios(token, step), batch.advantages)
            - PUBLISHED[loss](batch.ratios(token, -step), batch.advantages)
        )
        / (2.0 * step)
        for token in range(len(batch.tokens))
    ]


def trained(
    loss: Loss,
    batch: Batch,
    *,
    cut: list[list[int]] | None = None,
    is_cap: float | None = None,
    is_mask_beyond: float = math.inf,
    kl_beta: float = 0.0,
    moved: bool = True,
) -> tuple[float, list[float], TokenLoss]:
    """Loss, gradient and last terms, the trajectories taken in the micro-batches of `cut`.

    Without a cap the engine is the trainer: μ = π_old. Not `moved`: π_old = π_θ.
    """
    objective = Objective(loss, ClipRange(LOW, HIGH), is_cap or 1.0, is_mask_beyond, kl_beta)
    columns = torch.tensor(batch.tokens, dtype=torch.float64)
    theta_N = columns[:, 0].clone().requires_grad_()
    old_N = columns[:, 1] if moved else theta_N.detach()
    mu_N = old_N if is_cap is None else columns[:, 2]
    lengths = torch.tensor(batch.lengths)
    trajectory_N = torch.arange(len(lengths)).repeat_interleave(lengths)
    weights = token_weights(batch.lengths, loss, constant=CONSTANT)
    total, terms = 0.0, None
    for part in cut or [list(range(len(lengths)))]:
        own = torch.cat([(trajectory_N == index).nonzero()[:, 0] for index in part])
        terms = token_loss(
            theta_N[own],
            old_logprobs_N=old_N[own],
            sampled_logprobs_N=mu_N[own],
            ref_logprobs_N=columns[own, 3] if kl_beta else None,
            advantages_N=torch.tensor(batch.advantages, dtype=torch.float64)[trajectory_N[own]],
            trajectory_N=torch.arange(len(part)).repeat_interleave(lengths[part]),
            objective=objective,
        )
        weights_N = torch.tensor(weights, dtype=torch.float64)[trajectory_N[own]]
        share = (terms.loss_N * weights_N).sum()
        share.backward()
        total += share.item()
    assert theta_N.grad is not None
    assert terms is not None
    return total, theta_N.grad.tolist(), terms
