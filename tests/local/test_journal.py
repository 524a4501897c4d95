"""Which stages a demo has done, across interruptions."""

import contextlib
import dataclasses
from pathlib import Path

import pytest

from services.local.demo_settings import Arm, DemoPlan
from services.local.journal import Journal
from services.local.state import StackError

PLAN = DemoPlan()


def test_a_stage_counts_as_done_only_if_it_returned(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "progress.json", PLAN, resume=False)
    with journal.stage("first"):
        pass
    with pytest.raises(KeyboardInterrupt), journal.stage("second"):
        raise KeyboardInterrupt

    resumed = Journal.open(tmp_path / "progress.json", PLAN, resume=True)
    assert resumed.is_done("first")
    assert not resumed.is_done("second")
    assert not resumed.is_done("third")


def test_the_time_of_a_stage_adds_up_over_its_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("services.local.journal.time.monotonic", lambda: now)
    journal = Journal.open(tmp_path / "progress.json", PLAN, resume=False)
    with contextlib.suppress(KeyboardInterrupt), journal.stage("training") as clock:
        now = 107.0
        assert clock.tick() == 7.0
        now = 110.0
        raise KeyboardInterrupt

    resumed = Journal.open(tmp_path / "progress.json", PLAN, resume=True)
    now = 200.0
    with resumed.stage("training"):
        now = 205.0
    assert resumed.stage_seconds() == {"training": 15.0}


def test_resuming_under_another_plan_names_what_differs(tmp_path: Path) -> None:
    Journal.open(tmp_path / "progress.json", PLAN, resume=False)
    changed = dataclasses.replace(
        PLAN,
        arms=(Arm.MEDVR, Arm.ZOOM_ONLY),
        trainer=dataclasses.replace(PLAN.trainer, lr=0.5),
    )
    with pytest.raises(StackError) as refused:
        Journal.open(tmp_path / "progress.json", changed, resume=True)
    assert f"trainer.lr was {PLAN.trainer.lr}, is 0.5" in str(refused.value)
    assert "arms was ('medvr',), is ('medvr', 'zoom_only')" in str(refused.value)
    assert "group_size" not in str(refused.value)


def test_a_demo_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    Journal.open(tmp_path / "progress.json", PLAN, resume=False)
    with pytest.raises(StackError, match=r"--resume continues it, --fresh starts over"):
        Journal.open(tmp_path / "progress.json", PLAN, resume=False)


def test_nothing_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="nothing to resume"):
        Journal.open(tmp_path / "progress.json", PLAN, resume=True)


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"plan": 3}')
    with pytest.raises(StackError, match=r"progress\.json: .*--fresh"):
        Journal.open(tmp_path / "progress.json", PLAN, resume=True)
