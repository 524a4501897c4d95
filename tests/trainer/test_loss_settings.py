"""The loss section of the trainer's settings."""

import math
from typing import get_args

import pytest

from services.trainer.loss import Loss
from services.trainer.settings import TrainerSettings

REQUIRED = ["--model", "m", "--run", "r"]


def loaded(*flags: str) -> TrainerSettings:
    return TrainerSettings.load([*REQUIRED, *flags])


def test_every_loss_can_be_chosen_and_grpo_is_the_default() -> None:
    assert set(get_args(TrainerSettings.model_fields["loss"].annotation)) == set(Loss)
    assert loaded().loss == Loss.GRPO


@pytest.mark.parametrize(
    ("flags", "divides"),
    [
        ([], True),
        (["--no-advantage-division"], False),
        (["--loss", "dr_grpo"], False),
        (["--loss", "dr_grpo", "--no-advantage-division"], False),
        (["--loss", "gspo", "--advantage-division"], True),
    ],
)
def test_advantages_are_divided_unless_the_loss_is_dr_grpo_or_told_otherwise(
    flags: list[str], divides: bool
) -> None:
    assert loaded(*flags).divides_advantages is divides


def test_dr_grpo_with_division_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loaded("--loss", "dr_grpo", "--advantage-division")
    assert "advantage_division contradicts loss dr_grpo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "bounds"),
    [
        ([], (0.2, 0.28)),
        (["--loss", "dapo"], (0.2, 0.28)),
        (["--loss", "gspo"], (3e-4, 4e-4)),
        (["--loss", "gspo", "--clip-high", "0.01"], (3e-4, 0.01)),
        (["--clip-low", "0"], (0.0, 0.28)),
    ],
)
def test_a_ratio_per_trajectory_is_clipped_closer(
    flags: list[str], bounds: tuple[float, float]
) -> None:
    assert loaded(*flags).clip_bounds == bounds


def test_no_token_is_left_out_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded().is_mask_beyond == math.inf
    assert loaded("--is-mask-beyond", "5").is_mask_beyond == 5.0
    with pytest.raises(SystemExit):
        loaded("--is-mask-beyond", "1")
    assert "is_mask_beyond: Input should be greater than 1" in capsys.readouterr().err
