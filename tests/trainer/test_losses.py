"""Each loss against the published objective, written down as sums over plain numbers.

Nothing here is shared with the trainer: objectives are maximised in the papers, so the gradient of
the loss is minus their finite difference.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from services.trainer.loss import ClipRange, Loss, Objective, token_loss, token_weights

LOW, HIGH = 0.1, 0.15
LENGTHS = [3, 5, 2]
ADVANTAGES = [1.2, -0.7, 0.4]
CONSTANT = 8

Ratios = list[list[float]]
"""π_θ/π_old of every token of every trajectory."""


def clipped(ratio: float, advantage: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)


def grpo(ratios: Ratios) -> float:
    """arXiv 2402.03300, eq. 3 without its KL: 1/G Σ_i 1/|o_i| Σ_t min(…)."""
    total = 0.0
    for own, advantage in zip(ratios, ADVANTAGES, strict=True):
        total += sum(clipped(ratio, advantage) for ratio in own) / len(own)
    return total / len(ratios)


def dr_grpo(ratios: Ratios) -> float:
    """arXiv 2503.20783, section 3.2: a constant in place of |o_i|."""
    total = 0.0
    for own, advantage in zip(ratios, ADVANTAGES, strict=True):
        total += sum(clipped(ratio, advantage) for ratio in own) / CONSTANT
    return total / len(ratios)


def dapo(ratios: Ratios) -> float:
    """arXiv 2503.14476, eq. 8: 1/Σ|o_i| Σ_i Σ_t min(…), the two clip bounds apart."""
    total = 0.0
    for own, advantage in zip(ratios, ADVANTAGES, strict=True):
        total += sum(clipped(ratio, advantage) for ratio in own)
    return total / sum(len(own) for own in ratios)


def gspo(ratios: Ratios) -> float:
    """arXiv 2507.18071, eq. 5 and 7: 1/G Σ_i min(s_i A_i, clip(s_i) A_i)."""
    total = 0.0
    for own, advantage in zip(ratios, ADVANTAGES, strict=True):
        s_i = math.exp(sum(math.log(ratio) for ratio in own) / len(own))
        total += clipped(s_i, advantage)
    return total / len(ratios)


PUBLISHED: dict[Loss, Callable[[Ratios], float]] = {
    Loss.GRPO: grpo, Loss.DR_GRPO: dr_grpo, Loss.DAPO: dapo, Loss.GSPO: gspo,
}  # fmt: skip

FROZEN = {
    Loss.GRPO: 0.322686660568,
    Loss.DR_GRPO: 0.050485115915,
    Loss.DAPO: 0.121164278196,
    Loss.GSPO: 0.338998044917,
}
"""The objectives of `drawn()`, as the functions above gave them."""


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """ln π_θ and ln π_old of ten tokens; some ratios are outside the clip range."""
    rng = np.random.default_rng(5)
    old = -rng.exponential(1.0, sum(LENGTHS))
    return old + rng.normal(0.0, 0.15, sum(LENGTHS)), old


def ratios_of(logprobs: np.ndarray, old: np.ndarray) -> Ratios:
    ratios = np.exp(logprobs - old)
    return [part.tolist() for part in np.split(ratios, np.cumsum(LENGTHS)[:-1])]


def trained(loss: Loss, logprobs: torch.Tensor, old: np.ndarray) -> torch.Tensor:
    counts = torch.tensor(LENGTHS)
    terms = token_loss(
        logprobs,
        old_logprobs_N=torch.tensor(old),
        sampled_logprobs_N=torch.tensor(old),
        ref_logprobs_N=None,
        advantages_N=torch.tensor(ADVANTAGES, dtype=torch.float64).repeat_interleave(counts),
        trajectory_N=torch.arange(len(LENGTHS)).repeat_interleave(counts),
        objective=Objective(
            loss, ClipRange(LOW, HIGH), is_cap=2.0, is_mask_beyond=math.inf, kl_beta=0.0
        ),
    )
    weights = token_weights(LENGTHS, loss, constant=CONSTANT)
    weights_N = torch.tensor(weights, dtype=torch.float64).repeat_interleave(counts)
    return (terms.loss_N * weights_N).sum()


@pytest.mark.parametrize("loss", Loss)
def test_the_loss_is_minus_the_published_objective(loss: Loss) -> None:
    logprobs, old = drawn()
    ratios = ratios_of(logprobs, old)
    assert any(not 1 - LOW < r < 1 + HIGH for own in ratios for r in own)
    assert PUBLISHED[loss](ratios) == pytest.approx(FROZEN[loss], abs=1e-9)
    assert float(trained(loss, torch.tensor(logprobs), old)) == pytest.approx(-FROZEN[loss])


@pytest.mark.parametrize("loss", Loss)
def test_the_gradient_is_minus_the_finite_difference_of_the_objective(loss: Loss) -> None:
    logprobs, old = drawn()
    given = torch.tensor(logprobs, requires_grad=True)
    trained(loss, given, old).backward()
    for token in range(len(logprobs)):
        nudge = np.zeros_like(logprobs)
        nudge[token] = 1e-6
        above = PUBLISHED[loss](ratios_of(logprobs + nudge, old))
        below = PUBLISHED[loss](ratios_of(logprobs - nudge, old))
        assert float(given.grad[token]) == pytest.approx(-(above - below) / 2e-6, abs=1e-7)


def test_a_long_wrong_answer_is_punished_per_token_as_much_as_a_short_one_by_dr_grpo() -> None:
    by_length = token_weights([100, 10], Loss.GRPO)
    assert by_length[0] * 10 == pytest.approx(by_length[1])
    assert len(set(token_weights([100, 10], Loss.DR_GRPO, constant=CONSTANT))) == 1
