"""The four losses against the published formulas, against TRL, and what no cut may change."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.loss import Loss, token_weights
from tests.trainer.published import (
    CONSTANT,
    HIGH,
    LOW,
    PUBLISHED,
    Batch,
    published_gradient,
    sequence_ratio_of,
    trained,
)

ALL = list(Loss)

HAND_MADE = Batch(
    tokens=[
        (-0.79, -0.50, -0.59, -0.93), (-1.20, -0.33, -0.11, -0.79), (-1.97, -2.03, -1.26, -1.77),
        (-0.44, -0.82, -1.57, -1.33), (-1.69, -1.89, -2.30, -1.61), (-0.01, -0.23, -0.37, -0.03),
        (-0.62, -1.13, -2.16, -1.34), (-3.79, -3.60, -4.46, -3.57),
        (-0.84, -1.15, -1.26, -0.95), (-0.01, -0.54, -0.22, -0.65),
        (-1.99, -1.56, -1.48, -1.80), (-0.72, -0.42, -0.65, -0.22), (-1.14, -0.83, -0.81, -0.66),
        (-1.77, -1.75, -1.49, -1.42),
        (-0.77, -0.48, -0.26, -0.79),
    ],
    lengths=[3, 5, 2, 4, 1],
    advantages=[1.2, -0.7, 0.4, -0.9, 0.6],
)  # fmt: skip
"""Ratios on both sides of both bounds for advantages of both signs; two of five s_i are clipped."""


@pytest.mark.parametrize("loss", ALL)
def test_the_loss_is_minus_the_published_objective(loss: Loss) -> None:
    value, gradient, _ = trained(loss, HAND_MADE)
    objective = PUBLISHED[loss](HAND_MADE.ratios(), HAND_MADE.advantages)
    assert value == pytest.approx(-objective, abs=1e-12)
    expected = [-slope for slope in published_gradient(loss, HAND_MADE)]
    assert gradient == pytest.approx(expected, abs=1e-8)


TRL_PLAIN = {
    Loss.GRPO: (-0.038590417482, [
        -0.059861085, -0.033516124, -0.084946924, 0.040943969, 0.034199277, 0.034890148,
        0.046628153, 0.023154856, 0, 0, 0, 0, 0, 0.04410894, -0.089791628]),
    Loss.DR_GRPO: (0.084744218858, [
        -0.022447907, -0.012568546, -0.031855096, 0.02558998, 0.021374548, 0.021806343,
        0.029142596, 0.014471785, 0, 0, 0, 0, 0, 0.02205447, -0.011223954]),
    Loss.DAPO: (0.225984583622, [
        -0.059861085, -0.033516124, -0.084946924, 0.068239948, 0.056998795, 0.058150247,
        0.077713589, 0.038591426, 0, 0, 0, 0, 0, 0.05881192, -0.029930543]),
    Loss.GSPO: (-0.03937143421, [
        -0.05544325, -0.05544325, -0.05544325, 0.035029989, 0.035029989, 0.035029989,
        0.035029989, 0.035029989, 0, 0, 0, 0, 0, 0, -0.089791628]),
}  # fmt: skip
"""Loss and gradient of `HAND_MADE` as `GRPOTrainer._compute_loss` of TRL 1.16.0 gave them.

In float64, its log-probabilities replaced by ours; epsilon 0.2, epsilon_high 0.28, beta 0, no
vLLM correction, one micro-batch, max_completion_length 8; loss_type by name, but for GSPO `grpo`
with importance_sampling_level `sequence`, as TRL's documentation says.
"""

TRL_CAPPED = {
    Loss.GRPO: 0.169438624996, Loss.DR_GRPO: 0.190658365382,
    Loss.DAPO: 0.508422307684, Loss.GSPO: 0.154222312998,
}  # fmt: skip
"""The losses with vllm_importance_sampling_mode token_truncate, clip_max 2, and beta 0.1."""
TRL_CAPPED_GRPO_GRADIENT = [
    -0.064627515, -0.030276105, -0.040807554, 0.084245314, 0.051198931, 0.040212429, 0.095309298,
    0.045325405, 0.001041659, 0.004727076, -0.001046248, -0.003243606, -0.003080372, 0.031914931,
    -0.071663443,
]  # fmt: skip

TRL_MASKED = {
    Loss.GRPO: -0.0192830049, Loss.DR_GRPO: 0.063971500887,
    Loss.DAPO: 0.170590669033, Loss.GSPO: -0.036885879416,
}  # fmt: skip
"""The losses with mode token_mask, clip_min 0.5 and clip_max 2, and beta 0."""
TRL_MASKED_GRPO_GRADIENT = [
    -0.06549846, -0.026897319, 0, 0, 0.051532079, 0.040133224, 0, 0, 0, 0, 0, 0, 0, 0.034010268,
    -0.072059469,
]  # fmt: skip


@pytest.mark.parametrize("loss", ALL)
def test_loss_and_gradient_are_those_of_trl(loss: Loss) -> None:
    value, gradient, _ = trained(loss, HAND_MADE)
    expected, slopes = TRL_PLAIN[loss]
    assert value == pytest.approx(expected, abs=1e-11)
    assert gradient == pytest.approx(slopes, abs=1e-8)


@pytest.mark.parametrize("loss", ALL)
def test_caps_masks_and_kl_are_those_of_trl(loss: Loss) -> None:
    capped, capped_gradient, _ = trained(loss, HAND_MADE, is_cap=2.0, kl_beta=0.1)
    masked, masked_gradient, _ = trained(loss, HAND_MADE, is_cap=2.0, is_mask_beyond=2.0)
    assert capped == pytest.approx(TRL_CAPPED[loss], abs=1e-11)
    assert masked == pytest.approx(TRL_MASKED[loss], abs=1e-11)
    if loss is Loss.GRPO:
        assert capped_gradient == pytest.approx(TRL_CAPPED_GRPO_GRADIENT, abs=1e-8)
        assert masked_gradient == pytest.approx(TRL_MASKED_GRPO_GRADIENT, abs=1e-8)


def test_a_token_left_out_is_not_trained_through_the_ratio_of_its_trajectory() -> None:
    """Here TRL differs: with s_i at every token it gives a token of c = 0 its siblings' mean c."""
    _, gradient, terms = trained(Loss.GSPO, HAND_MADE, is_cap=2.0, is_mask_beyond=2.0)
    expected: list[float] = []
    at = 0
    for trajectory, advantage in zip(HAND_MADE.ratios(), HAND_MADE.advantages, strict=True):
        s = sequence_ratio_of(trajectory)
        is_clipped = s > 1 + HIGH if advantage > 0 else s < 1 - LOW
        for _, old, mu, _ in HAND_MADE.tokens[at : at + len(trajectory)]:
            c = math.exp(old - mu)
            c = c if 0.5 <= c <= 2.0 else 0.0
            expected.append(0.0 if is_clipped else -c * s * advantage / len(trajectory) / 5)
        at += len(trajectory)
    assert gradient == pytest.approx(expected, abs=1e-12)
    assert terms.is_capped_N.tolist() == [i in (2, 3, 6, 7) for i in range(15)]
    assert terms.is_clipped_N.tolist() == [8 <= i < 14 for i in range(15)]


def test_a_long_wrong_answer_weighs_as_much_per_token_as_a_short_one_only_by_constants() -> None:
    weights = {loss: token_weights([10, 100], loss, constant=50) for loss in Loss}
    assert weights[Loss.GRPO] == weights[Loss.GSPO] == pytest.approx([1 / 20, 1 / 200])
    assert weights[Loss.DR_GRPO] == pytest.approx([1 / 100, 1 / 100])
    assert weights[Loss.DAPO] == pytest.approx([1 / 110, 1 / 110])


LOGPROBS = st.tuples(*[st.floats(-3.0, -0.01) for _ in range(4)])


@st.composite
def batches(draw: st.DrawFn, min_tokens: int = 1) -> Batch:
    lengths = draw(st.lists(st.integers(min_tokens, 6), min_size=1, max_size=6))
    num_tokens, num_trajectories = sum(lengths), len(lengths)
    advantage = st.floats(-2.0, 2.0)
    return Batch(
        draw(st.lists(LOGPROBS, min_size=num_tokens, max_size=num_tokens)),
        lengths,
        draw(st.lists(advantage, min_size=num_trajectories, max_size=num_trajectories)),
    )


def cuts(batch: Batch) -> st.SearchStrategy[list[list[int]]]:
    """Its trajectories in any order, in micro-batches of any size."""

    def cut(order: list[int], size: int) -> list[list[int]]:
        return [order[start : start + size] for start in range(0, len(order), size)]

    order = st.permutations(range(len(batch.lengths)))
    return st.builds(cut, order, st.integers(1, len(batch.lengths)))


@pytest.mark.parametrize("loss", ALL)
@given(batch=batches(), drawn=st.data())
def test_how_a_batch_is_cut_changes_neither_loss_nor_gradient(
    loss: Loss, batch: Batch, drawn: st.DataObject
) -> None:
    knobs = {"is_cap": 2.0, "is_mask_beyond": 3.0, "kl_beta": 0.1}
    whole, whole_gradient, _ = trained(loss, batch, **knobs)
    value, gradient, _ = trained(loss, batch, cut=drawn.draw(cuts(batch)), **knobs)
    assert value == pytest.approx(whole, abs=1e-10)
    assert gradient == pytest.approx(whole_gradient, abs=1e-10)


@pytest.mark.parametrize("loss", ALL)
@given(batch=batches())
def test_any_batch_has_the_published_objective(loss: Loss, batch: Batch) -> None:
    objective = PUBLISHED[loss](batch.ratios(), batch.advantages)
    assert trained(loss, batch)[0] == pytest.approx(-objective, abs=1e-10)


@given(batch=batches())
def test_grpo_is_that_of_the_method(batch: Batch) -> None:
    """METHOD.md, GRPO: −c · min(rA, clip(r)·A) + β · k3, mean over tokens, over trajectories."""
    expected = 0.0
    tokens = iter(batch.tokens)
    for length, advantage in zip(batch.lengths, batch.advantages, strict=True):
        mean = 0.0
        for _ in range(length):
            theta, old, mu, ref = next(tokens)
            r, c = math.exp(theta - old), min(math.exp(old - mu), 2.0)
            surrogate = min(r * advantage, min(max(r, 0.8), 1.28) * advantage)
            k3 = math.exp(ref - theta) - (ref - theta) - 1.0
            mean += (-c * surrogate + 0.001 * k3) / length
        expected += mean / len(batch.lengths)
    value, _, _ = trained(Loss.GRPO, batch, is_cap=2.0, kl_beta=0.001)
    assert value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("loss", ALL)
@given(batch=batches())
def test_while_the_policy_has_not_moved_losses_differ_in_weights_alone(
    loss: Loss, batch: Batch
) -> None:
    """r = 1: a token's gradient is −weight · c · A, GSPO's too, and nothing is clipped."""
    _, gradient, terms = trained(
        loss, batch, is_cap=2.0, is_mask_beyond=3.0, kl_beta=0.0, moved=False
    )
    weights = token_weights(batch.lengths, loss, constant=CONSTANT)
    expected: list[float] = []
    for length, weight, advantage in zip(batch.lengths, weights, batch.advantages, strict=True):
        for theta, _, mu, _ in batch.tokens[len(expected) : len(expected) + length]:
            c = math.exp(theta - mu)
            expected.append(-weight * advantage * (min(c, 2.0) if 1 / 3 <= c <= 3.0 else 0.0))
    assert gradient == pytest.approx(expected, abs=1e-12)
    assert not terms.is_clipped_N.any()


@given(batch=batches())
def test_trajectories_of_one_length_cannot_tell_dapo_from_grpo(batch: Batch) -> None:
    equal = replace(batch, lengths=[1] * len(batch.tokens), advantages=[0.5] * len(batch.tokens))
    for one, other in ((Loss.DAPO, Loss.GRPO), (Loss.GSPO, Loss.GRPO)):  # of one token, even GSPO
        assert trained(one, equal)[1] == pytest.approx(trained(other, equal)[1], abs=1e-12)
