"""Fitting a calibration and measuring it: pure functions of features and of what was right.

The problems are split in two by image. On the first part the logistic regression is fitted, and
the isotonic regression on its scores there: four numbers learn no answers by heart, and scores of
another regression (of folds) would not lie on the scale that is used later. The second part is
held out: all figures are of the very calibration that is written, on problems it has not seen.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from services.clinic.confidence import CalibrationError, Features, score_of

Floats = npt.NDArray[np.float64]

LEAST_OF_EACH = 8
"""Right answers, and wrong ones, without which nothing can be learnt of the difference."""
NUM_BINS = 10
_LEAST_SPREAD = 1e-3
"""Of a feature that hardly varies: it must not be blown up."""


class Answered(NamedTuple):
    """An answered problem."""

    image: str
    """Problems of one image stay on one side of every split."""
    features: Features
    is_right: bool


class Curve(NamedTuple):
    """What `Calibration` holds of a fit."""

    weights: list[float]
    bias: float
    scores: list[float]
    probabilities: list[float]


class Bin(msgspec.Struct, frozen=True):
    """Answers whose probability was said to be in one tenth."""

    num_answers: int
    said: float
    """Mean probability that was said."""
    right: float
    """Share that was right."""


class RiskAt(msgspec.Struct, frozen=True):
    """What answering only the surest gives."""

    coverage: float
    """Share of all problems that are answered; those the trajectories disagree on never are."""
    risk: float
    """Share of the answers that are wrong."""


def held_out_images(images: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """So large a share of the distinct images, by a digest of each: the same on every run."""
    distinct = sorted(
        set(images), key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest()
    )
    return frozenset(distinct[: round(share * len(distinct))])


def fit(answered: Sequence[Answered]) -> Curve:
    """Logistic regression, then isotonic regression of its score. Raises `CalibrationError`."""
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    x = np.array([a.features for a in answered], np.float64).reshape(-1, len(Features._fields))
    y = np.array([a.is_right for a in answered], np.int64)
    num_right, num_wrong = int(y.sum()), int((1 - y).sum())
    if min(num_right, num_wrong) < LEAST_OF_EACH:
        raise CalibrationError(
            f"{num_right} right and {num_wrong} wrong answers to fit on; at least {LEAST_OF_EACH} "
            "of each are needed: take more problems, or harder ones"
        )
    spread = np.maximum(x.std(axis=0), _LEAST_SPREAD)
    regression = LogisticRegression().fit(x / spread, y)
    weights = np.ravel(regression.coef_) / spread
    bias = float(np.ravel(regression.intercept_)[0])
    scores = np.array([score_of(weights.tolist(), bias, a.features) for a in answered])
    least = 1 / (len(y) + 2)  # nobody is surer than n answers allow (Laplace)
    isotonic = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    isotonic.fit(scores, y)
    return Curve(
        weights=weights.tolist(),
        bias=bias,
        scores=isotonic.X_thresholds_.tolist(),
        probabilities=np.clip(isotonic.y_thresholds_, 0.0, 1.0).tolist(),
    )


def reliability(said: Sequence[float], is_right: Sequence[bool]) -> list[Bin]:
    """The answers in ten bins of equal width by what was said of them; empty bins are left out."""
    p, y = np.asarray(said, np.float64), np.asarray(is_right, np.float64)
    places = np.minimum((p * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    groups = [places == place for place in range(NUM_BINS)]
    return [
        Bin(int(inside.sum()), float(p[inside].mean()), float(y[inside].mean()))
        for inside in groups
        if inside.any()
    ]


def expected_calibration_error(said: Sequence[float], is_right: Sequence[bool]) -> float:
    """ECE = Σ_b n_b/n · |said_b − right_b| over the bins of `reliability`; 0 of no answers."""
    bins = reliability(said, is_right)
    num = sum(b.num_answers for b in bins)
    return sum(b.num_answers * abs(b.said - b.right) for b in bins) / num if num else 0.0


def brier_score(said: Sequence[float], is_right: Sequence[bool]) -> float:
    """Mean of (p − y)²; 0 of no answers."""
    p, y = np.asarray(said, np.float64), np.asarray(is_right, np.float64)
    return float(np.mean((p - y) ** 2)) if len(p) else 0.0


def risk_coverage(
    said: Sequence[float], is_right: Sequence[bool], num_problems: int
) -> list[RiskAt]:
    """Risk and coverage at every threshold that occurs, the highest first."""
    p, y = np.asarray(said, np.float64), np.asarray(is_right, np.float64)
    order = np.argsort(-p, kind="stable")
    p, wrong = p[order], np.cumsum(1 - y[order])
    is_last = np.append(p[1:] != p[:-1], True) if len(p) else np.zeros(0, np.bool_)
    return [
        RiskAt(coverage=(i + 1) / num_problems, risk=float(wrong[i]) / (i + 1))
        for i in np.flatnonzero(is_last).tolist()
    ]
