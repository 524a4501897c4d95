"""Confidence: the calibrated probability that an answer is right. Pure functions and their file.

Isotonic regression takes one number, and there are three: agreement (the share of the K
trajectories behind the answer), mean answer-token probability (how sure they were of the words)
and consensus IoU (whether the trajectory shown looked where the others did). They are reduced to
the one number that tells right from wrong best in a linear way: the log-odds of a logistic
regression, s = w·x + b. The isotonic curve then says how often answers of about that s were right;
it only assumes that more of s is not worse. Both are fitted by `medvr clinic calibrate`
(services/clinic/fitting), and written as plain JSON: a calibration is data, never code.

A calibration holds for the weights, the K and the prompt it was fitted with, and for images like
those of its problem set; the first three are checked here, the last only a reader can judge.
"""

import hashlib
import itertools
import math
from bisect import bisect_right
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.case_result import CalibrationName, UnknownConfidence
from shared.errors import MedvrError


class CalibrationError(MedvrError):
    """A calibration that cannot be used or made; the message says why."""


class Features(NamedTuple):
    """What is known of an answer before anybody knows whether it is right; each 0 to 1."""

    agreement: float
    answer_token_probability: float
    """Mean over the agreeing trajectories."""
    consensus_iou: float
    """Of the trajectory shown."""


class HeldOut(WireModel):
    """How the calibration did on problems it was not fitted on."""

    num_problems: int
    """Of the set, held out."""
    num_answered: int
    """Of them, those whose trajectories agreed on an answer."""
    accuracy: float
    """Of the answered ones."""
    ece_before: float
    """Expected calibration error of the raw agreement taken for a probability."""
    ece_after: float
    """Of the confidence."""
    brier_before: float
    brier_after: float


class Calibration(WireModel):
    """`calibration.json`."""

    format: Literal[1] = 1
    problem_set: str
    problem_set_sha256: str = Field(pattern=SHA256_PATTERN)
    num_problems: int = Field(ge=1)
    num_fitted: int = Field(ge=1)
    """Answered problems the curve was fitted on."""
    model: str
    run: str
    version: int
    weights_sha256: str = Field(pattern=SHA256_PATTERN)
    prompt_sha256: str = Field(pattern=SHA256_PATTERN)
    num_trajectories: int = Field(ge=1)
    """K."""
    fitted_on: date
    weights: list[float] = Field(min_length=3, max_length=3)
    """w, in the order of `Features`."""
    bias: float
    """b."""
    scores: list[float] = Field(min_length=1)
    """Knots of the isotonic curve: s, ascending."""
    probabilities: list[float] = Field(min_length=1)
    """And the probability at each, never falling; straight lines between, flat beyond."""
    held_out: HeldOut

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        if len(self.scores) != len(self.probabilities):
            raise ValueError("scores and probabilities must be equally many")
        if any(low >= high for low, high in itertools.pairwise(self.scores)):
            raise ValueError("scores must be strictly ascending")
        if any(low > high for low, high in itertools.pairwise(self.probabilities)):
            raise ValueError("probabilities must not fall")
        if not 0.0 <= self.probabilities[0] <= self.probabilities[-1] <= 1.0:
            raise ValueError("probabilities must be between 0 and 1")
        return self


class LoadedCalibration(NamedTuple):
    """A calibration and the digest of the file it was read from."""

    calibration: Calibration
    calibration_id: str

    @property
    def name(self) -> CalibrationName:
        """As a result names it."""
        model = self.calibration
        return CalibrationName(
            calibration_id=self.calibration_id,
            problem_set=model.problem_set,
            problem_set_sha256=model.problem_set_sha256,
            num_problems=model.num_problems,
            num_trajectories=model.num_trajectories,
            weights_sha256=model.weights_sha256,
            prompt_sha256=model.prompt_sha256,
            fitted_on=model.fitted_on,
        )


def load_calibration(path: Path) -> LoadedCalibration:
    """Read and check a calibration. Raises `CalibrationError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error
    try:
        calibration = Calibration.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise CalibrationError(f"{path} is no calibration: {what}") from error
    return LoadedCalibration(calibration, hashlib.sha256(content).hexdigest())


def score_of(weights: list[float], bias: float, features: Features) -> float:
    """s = w·x + b."""
    return math.fsum([bias, *(w * x for w, x in zip(weights, features, strict=True))])


def curve_at(scores: list[float], probabilities: list[float], score: float) -> float:
    """The isotonic curve: straight between its knots, flat beyond the first and the last."""
    after = bisect_right(scores, score)
    if after == 0:
        return probabilities[0]
    if after == len(scores):
        return probabilities[-1]
    low, high = scores[after - 1], scores[after]
    share = (score - low) / (high - low)
    return probabilities[after - 1] + share * (probabilities[after] - probabilities[after - 1])


def confidence_of(calibration: Calibration, features: Features) -> float:
    """The probability that an answer with these features is right."""
    score = score_of(calibration.weights, calibration.bias, features)
    return curve_at(calibration.scores, calibration.probabilities, score)


def unfit_for(
    calibration: Calibration | None,
    *,
    weights_sha256: str | None,
    num_trajectories: int,
    prompt_sha256: str,
) -> UnknownConfidence | None:
    """Why a calibration does not hold for a case; None if it does."""
    if calibration is None:
        return UnknownConfidence.NOT_CALIBRATED
    if calibration.weights_sha256 != weights_sha256:
        return UnknownConfidence.OTHER_WEIGHTS
    if calibration.num_trajectories != num_trajectories:
        return UnknownConfidence.OTHER_NUM_TRAJECTORIES
    if calibration.prompt_sha256 != prompt_sha256:
        return UnknownConfidence.OTHER_PROMPT
    return None
