"""The fit and its figures, against values worked out by hand and by scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from services.clinic.confidence import CalibrationError, Features, curve_at, score_of
from services.clinic.fitting import (
    Answered,
    Bin,
    RiskAt,
    brier_score,
    expected_calibration_error,
    fit,
    held_out_images,
    reliability,
    risk_coverage,
)


def drawn(num: int, seed: int) -> tuple[list[Answered], list[float]]:
    """Answers whose probability of being right is known: it grows with the agreement alone."""
    random = np.random.default_rng(seed)
    agreement = random.choice([0.4, 0.6, 0.8, 1.0], num)
    truth = (agreement - 0.3) ** 2 * 2
    noise = random.uniform(size=(num, 2))
    right = random.uniform(size=num) < truth
    answered = [
        Answered(f"image {i}", Features(float(agreement[i]), *noise[i].tolist()), bool(right[i]))
        for i in range(num)
    ]
    return answered, truth.tolist()


def test_reliability_and_ece_by_hand():
    said = [0.05, 0.62, 0.68, 0.95, 1.0]
    right = [False, True, False, True, True]

    assert reliability(said, right) == [
        Bin(1, pytest.approx(0.05), 0.0),
        Bin(2, pytest.approx(0.65), 0.5),
        Bin(2, pytest.approx(0.975), 1.0),
    ]
    expected = (1 * 0.05 + 2 * 0.15 + 2 * 0.025) / 5
    assert expected_calibration_error(said, right) == pytest.approx(expected)
    assert expected_calibration_error([], []) == 0.0


def test_risk_and_coverage_by_hand_with_a_problem_nobody_answered():
    said = [0.9, 0.6, 0.9, 0.3]
    right = [True, False, False, True]

    assert risk_coverage(said, right, num_problems=5) == [
        RiskAt(coverage=2 / 5, risk=1 / 2),
        RiskAt(coverage=3 / 5, risk=2 / 3),
        RiskAt(coverage=4 / 5, risk=2 / 4),
    ]
    assert risk_coverage([], [], num_problems=5) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_figures_stay_in_their_ranges(answers: list[tuple[float, bool]]):
    said, right = [p for p, _ in answers], [y for _, y in answers]

    assert 0.0 <= expected_calibration_error(said, right) <= 1.0
    assert brier_score(said, right) == pytest.approx(brier_score_loss(right, said, labels=[0, 1]))
    assert sum(b.num_answers for b in reliability(said, right)) == len(answers)
    last = risk_coverage(said, right, len(answers))[-1]
    assert (last.coverage, last.risk) == (1.0, pytest.approx(right.count(False) / len(right)))


def test_a_fit_says_how_often_such_answers_are_right():
    answered, _ = drawn(1500, seed=1)
    curve = fit(answered)
    fresh, truth = drawn(1500, seed=2)

    said = [
        curve_at(curve.scores, curve.probabilities, score_of(curve.weights, curve.bias, a.features))
        for a in fresh
    ]

    assert np.abs(np.array(said) - truth).mean() < 0.05
    right = [a.is_right for a in fresh]
    raw = [a.features.agreement for a in fresh]
    assert expected_calibration_error(said, right) < 0.05 < 0.15
    assert expected_calibration_error(raw, right) > 0.15
    assert curve.weights[0] > 5 * max(abs(curve.weights[1]), abs(curve.weights[2]))
    assert curve.probabilities == sorted(curve.probabilities)
    assert 1 / 1502 <= curve.probabilities[0] <= curve.probabilities[-1] <= 1501 / 1502
    assert fit(answered) == curve


def test_too_few_wrong_answers_teach_nothing():
    right = [Answered(str(i), Features(1.0, 0.9, 0.5), True) for i in range(50)]
    with pytest.raises(CalibrationError, match="50 right and 0 wrong answers"):
        fit(right)


@given(st.integers(2, 60), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_a_share_of_the_images_is_held_out_whatever_their_order(num: int, share: float, seed: int):
    images = [f"image {i % num}" for i in range(2 * num)]

    kept_back = held_out_images(images, share, seed)

    assert kept_back == held_out_images(images[::-1], share, seed) <= set(images)
    assert len(kept_back) == round(share * num)
