"""From features to a probability: the file, the score, the curve, and when it does not hold."""

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.clinic.confidence import (
    Calibration,
    CalibrationError,
    Features,
    HeldOut,
    confidence_of,
    load_calibration,
    unfit_for,
)
from services.clinic.provenance import prompt_sha256
from services.clinic.settings import ClinicSettings
from shared.api.case_result import UnknownConfidence
from shared.weights import weights_sha256

TRAINED = Path(__file__).parents[2] / "services" / "trainer" / "tiny" / "trained"


def a_calibration(**changes: Any) -> Calibration:
    """s = 2·agreement + probability − 1, so that s runs from −1 to 2; the curve has three knots."""
    figures = dict.fromkeys(HeldOut.model_fields, 0)
    values: dict[str, Any] = {
        "problem_set": "a set",
        "problem_set_sha256": "1" * 64,
        "num_problems": 40,
        "num_fitted": 24,
        "model": "scripted",
        "run": "rehearsal",
        "version": 7,
        "weights_sha256": "a" * 64,
        "prompt_sha256": prompt_sha256(),
        "num_trajectories": 3,
        "fitted_on": date(2026, 1, 2),
        "weights": [2.0, 1.0, 0.0],
        "bias": -1.0,
        "scores": [0.0, 1.0, 1.5],
        "probabilities": [0.2, 0.2, 0.9],
        "held_out": figures,
    }
    return Calibration.model_validate(values | changes)


def written(folder: Path, content: str | Calibration) -> Path:
    path = folder / "calibration.json"
    path.write_text(content if isinstance(content, str) else content.model_dump_json())
    return path


@pytest.mark.parametrize(
    ("features", "probability"),
    [
        (Features(0.0, 0.0, 0.0), 0.2),  # s = -1: flat before the first knot
        (Features(0.5, 0.5, 1.0), 0.2),  # s = 0.5
        (Features(0.75, 0.75, 0.0), 0.2 + 0.5 * 0.7),  # s = 1.25: half way up
        (Features(1.0, 0.5, 0.3), 0.9),  # s = 1.5
        (Features(1.0, 1.0, 0.0), 0.9),  # s = 2: flat after the last
    ],
)
def test_the_curve_is_straight_between_its_knots_and_flat_beyond(
    features: Features, probability: float
):
    assert confidence_of(a_calibration(), features) == pytest.approx(probability)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=2, max_size=2))
def test_a_higher_score_never_gives_a_lower_confidence(pair: list[tuple[float, float, float]]):
    calibration = a_calibration(weights=[1.3, 0.7, 0.4])

    def score(features: tuple[float, float, float]) -> float:
        return math.fsum(w * x for w, x in zip(calibration.weights, features, strict=True))

    low, high = sorted(pair, key=score)

    assert confidence_of(calibration, Features(*low)) <= confidence_of(calibration, Features(*high))


def test_a_written_calibration_is_read_back_and_named_by_its_bytes(tmp_path: Path):
    path = written(tmp_path, a_calibration())

    loaded = load_calibration(path)

    assert loaded.calibration == a_calibration()
    assert (loaded.name.problem_set, loaded.name.num_problems) == ("a set", 40)
    written(tmp_path, a_calibration(bias=-1.5))
    assert load_calibration(path).calibration_id != loaded.calibration_id


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": [0.0, 0.0, 1.5]}, "strictly ascending"),
        ({"probabilities": [0.3, 0.2, 0.9]}, "must not fall"),
        ({"probabilities": [0.2, 0.9]}, "equally many"),
        ({"probabilities": [0.2, 0.3, 1.1]}, "between 0 and 1"),
        ({"weights": [1.0]}, "weights"),
        ({"format": 2}, "format"),
        ({"weights_sha256": "short"}, "weights_sha256"),
        ({"hocus": 1}, "hocus"),
    ],
)
def test_a_damaged_calibration_is_refused_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], says: str
):
    content = json.dumps(a_calibration().model_dump(mode="json") | changes)
    with pytest.raises(CalibrationError, match=says):
        load_calibration(written(tmp_path, content))


def test_what_is_no_json_and_what_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(CalibrationError, match="is no calibration"):
        load_calibration(written(tmp_path, "\x80"))
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_calibration(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("asked_with", "reason"),
    [
        ({}, None),
        ({"weights_sha256": "b" * 64}, UnknownConfidence.OTHER_WEIGHTS),
        ({"weights_sha256": None}, UnknownConfidence.OTHER_WEIGHTS),
        ({"num_trajectories": 5}, UnknownConfidence.OTHER_NUM_TRAJECTORIES),
        ({"prompt_sha256": "c" * 64}, UnknownConfidence.OTHER_PROMPT),
    ],
)
def test_a_calibration_holds_for_what_it_was_fitted_with(
    asked_with: dict[str, Any], reason: UnknownConfidence | None
):
    same = {
        "weights_sha256": "a" * 64,
        "num_trajectories": 3,
        "prompt_sha256": prompt_sha256(),
    }
    assert unfit_for(a_calibration(), **(same | asked_with)) is reason
    assert unfit_for(None, **same) is UnknownConfidence.NOT_CALIBRATED


def test_the_shipped_calibration_holds_for_the_shipped_policy_and_helps():
    calibration = load_calibration(TRAINED / "calibration.json").calibration
    figures = calibration.held_out

    reason = unfit_for(
        calibration,
        weights_sha256=weights_sha256(TRAINED),
        num_trajectories=ClinicSettings().default_k,
        prompt_sha256=prompt_sha256(),
    )

    assert reason is None
    assert figures.num_problems >= 100
    assert figures.ece_after < figures.ece_before
    assert figures.brier_after < figures.brier_before
