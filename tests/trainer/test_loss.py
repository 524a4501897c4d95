"""METHOD.md's formulas against hand-computed values and independent numpy."""

import math

import numpy as np
import pytest
import torch

from services.trainer.loss import (
    ClipRange,
    Loss,
    Objective,
    clipped_objective,
    group_advantages,
    has_signal,
    importance_weights,
    k3,
    token_loss,
    token_weights,
)

CLIP = ClipRange(0.2, 0.28)


def test_advantages_of_a_group_by_hand() -> None:
    # mean 0.5, deviations ±0.5 (twice each), sum of squares 1, ddof 1: std = sqrt(1/3)
    expected = 0.5 / (np.sqrt(1 / 3) + 1e-4)
    advantages = group_advantages([1.0, 0.0, 1.0, 0.0], divide=True)
    assert advantages == pytest.approx([expected, -expected, expected, -expected], abs=1e-12)


def test_advantages_agree_with_numpy() -> None:
    rewards = [1.5, -0.2, 0.0, 2.0, 1.0, 1.0]
    r = np.array(rewards)
    expected = (r - r.mean()) / (r.std(ddof=1) + 1e-4)
    assert group_advantages(rewards, divide=True) == pytest.approx(expected.tolist(), abs=1e-12)


def test_without_division_advantages_are_centred_rewards() -> None:
    assert group_advantages([2.0, 0.0, 1.0], divide=False) == pytest.approx([1.0, -1.0, 0.0])


def test_a_group_of_one_has_no_advantage() -> None:
    assert group_advantages([1.5], divide=True) == [0.0]


def test_equal_rewards_carry_no_signal() -> None:
    assert not has_signal([1.0 - 0.2 + 0.5, 1.0 + 0.5 - 0.2, 1.3])
    assert has_signal([1.3, 1.3, 1.0])


def test_token_weights_are_a_mean_over_tokens_then_over_trajectories() -> None:
    weights = token_weights([2, 5])
    assert weights == [1 / 4, 1 / 10]
    assert sum(w * n for w, n in zip(weights, [2, 5], strict=True)) == pytest.approx(1.0)


def test_k3_is_zero_for_equal_policies_and_positive_else() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    assert torch.equal(k3(logprobs, logprobs), torch.zeros(3, dtype=torch.float64))
    other = torch.tensor([-1.1, -1.0, -0.5], dtype=torch.float64)
    p, q = np.exp(logprobs.numpy()), np.exp(other.numpy())
    np.testing.assert_allclose(k3(logprobs, other), q / p - np.log(q / p) - 1, atol=1e-12)


def test_k3_estimates_the_kl_of_what_was_drawn() -> None:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expectation = (p * k3(p.log(), q.log())).sum()
    torch.testing.assert_close(expectation, (p * (p / q).log()).sum())


def test_importance_weights_are_capped_above_only_and_carry_no_gradient() -> None:
    old = torch.log(torch.tensor([0.8, 0.2, 0.3])).requires_grad_()
    sampled = torch.log(torch.tensor([0.1, 0.4, 0.3]))
    weights, is_capped = importance_weights(old, sampled, cap=2.0, mask_beyond=math.inf)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, 1.0]))
    assert is_capped.tolist() == [True, False, False]
    assert not weights.requires_grad


def test_tokens_out_of_range_are_left_out_on_either_side() -> None:
    old = torch.log(torch.tensor([0.8, 0.1, 0.3, 0.59, 0.3]))
    sampled = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.2, 0.59]))
    weights, is_capped = importance_weights(old, sampled, cap=2.0, mask_beyond=3.0)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 1.0, 2.0, 0.3 / 0.59]))
    assert is_capped.tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [
        (1.5, 1.0, 1.28, True),
        (1.5, -1.0, -1.5, False),
        (0.5, 1.0, 0.5, False),
        (0.5, -1.0, -0.8, True),
        (1.1, 2.0, 2.2, False),
    ],
)
def test_the_objective_is_pessimistic(
    ratio: float, advantage: float, objective: float, clipped: bool
) -> None:
    value, is_clipped = clipped_objective(torch.tensor([ratio]), torch.tensor([advantage]), CLIP)
    assert value.item() == pytest.approx(objective)
    assert is_clipped.item() is clipped


def test_the_whole_token_loss_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    theta, old, mu, ref = (-rng.exponential(1.0, 50) for _ in range(4))
    advantages = rng.normal(size=50)
    terms = token_loss(
        torch.tensor(theta),
        old_logprobs_N=torch.tensor(old),
        sampled_logprobs_N=torch.tensor(mu),
        ref_logprobs_N=torch.tensor(ref),
        advantages_N=torch.tensor(advantages),
        trajectory_N=torch.zeros(50, dtype=torch.long),
        objective=Objective(Loss.GRPO, CLIP, is_cap=2.0, is_mask_beyond=math.inf, kl_beta=0.1),
    )
    ratio = np.exp(theta - old)
    objective = np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.28) * advantages)
    kl = np.exp(ref - theta) - (ref - theta) - 1
    expected = -np.minimum(np.exp(old - mu), 2.0) * objective + 0.1 * kl
    np.testing.assert_allclose(terms.loss_N, expected, atol=1e-12)
    np.testing.assert_allclose(terms.kl_reference_N, kl, atol=1e-12)
    np.testing.assert_allclose(terms.mismatch_kl_N, np.exp(old - mu) - (old - mu) - 1, atol=1e-12)
    np.testing.assert_array_equal(terms.is_capped_N, np.exp(old - mu) > 2.0)


def test_with_one_update_the_gradient_is_that_of_weighted_logprobs_and_nothing_clips() -> None:
    theta = torch.tensor([-0.1, -3.0, -1.0], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([-0.2, -2.0, -4.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    terms = token_loss(
        theta,
        old_logprobs_N=theta.detach(),
        sampled_logprobs_N=mu,
        ref_logprobs_N=None,
        advantages_N=advantages,
        trajectory_N=torch.zeros(3, dtype=torch.long),
        objective=Objective(Loss.GRPO, CLIP, is_cap=2.0, is_mask_beyond=math.inf, kl_beta=0.0),
    )
    terms.loss_N.sum().backward()
    c = np.minimum(np.exp(theta.detach().numpy() - mu.numpy()), 2.0)
    np.testing.assert_allclose(theta.grad, -c * advantages.numpy(), atol=1e-12)
    assert not terms.is_clipped_N.any()
