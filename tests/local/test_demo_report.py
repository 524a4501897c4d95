"""The demo's report, its tables, and what `--fresh` removes."""

from pathlib import Path

import pytest

from services.local.demo_folder import DemoFolder
from services.local.demo_report import (
    EvaluationSummary,
    Measured,
    TrainingOutcome,
    comparison_rows,
    make_report,
    markdown_table,
    table_rows,
)
from services.local.demo_settings import Arm, DemoPlan
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.state import StackError
from shared.weights import ChannelPointer

PLAN = DemoPlan(arms=(Arm.MEDVR, Arm.ZOOM_ONLY), test_sets=("brain",))


def measured(accuracy: float, hit_rate: float | None) -> EvaluationSummary:
    def around(value: float) -> tuple[float, float, float]:
        return (value, value - 0.05, value + 0.05)

    metrics = Measured(
        accuracy=around(accuracy),
        hit_rate=None if hit_rate is None else around(hit_rate),
        iou=around(0.3),
        box_area=around(0.06),
        mean_zooms=around(1.0),
    )
    return EvaluationSummary(metrics=metrics, num_problems=200, num_failed=0)


def outcome(run: str, until: int | None) -> TrainingOutcome:
    return TrainingOutcome(
        run=run,
        steps=80,
        seconds=600.0,
        final_version=ChannelPointer(run=run, version=80, path="there"),
        steps_until_hit_rate_60=until,
        cursor=400,
        fates={"trained": 320, "no_signal": 70, "surplus": 10},
    )


def test_each_arm_has_three_numbers() -> None:
    evaluations = {
        (Arm.MEDVR, "brain", "before"): measured(0.3, 0.25),
        (Arm.MEDVR, "brain", "after"): measured(0.9, 0.85),
        (Arm.ZOOM_ONLY, "brain", "before"): measured(0.3, 0.25),
        (Arm.ZOOM_ONLY, "brain", "after"): measured(0.5, 0.4),
    }
    outcomes = {Arm.MEDVR: outcome("a", 31), Arm.ZOOM_ONLY: outcome("b", None)}
    report = make_report(
        PLAN,
        evaluations,
        outcomes,
        stage_seconds={"problems": 20.0, "training: medvr": 600.0},
        set_seeds={"brain-test": 1},
    )

    assert report.arms["medvr"]["brain"]["after"].accuracy == (0.9, 0.9 - 0.05, 0.9 + 0.05)
    assert report.seconds == 620.0
    assert report.seeds == {"training": 0, "evaluation": 0, "brain-test": 1}
    assert comparison_rows(report)[1:] == [
        ("medvr", "85.0 %", "90.0 %", "31"),
        ("zoom_only", "40.0 %", "50.0 %", "not within 80"),
    ]
    table = markdown_table(table_rows(report))
    assert "| medvr | brain | after | 90.0 % (85.0–95.0) | 85.0 % (80.0–90.0) |" in table


def test_fresh_removes_what_the_demo_made_and_nothing_else(tmp_path: Path) -> None:
    folder = DemoFolder(StackPaths(tmp_path), PLAN)
    mine = [tmp_path / "demo" / "problems", folder.run_folder(Arm.ZOOM_ONLY)]
    mine += [tmp_path / "weights" / "demo-medvr" / "000003"]
    others = [tmp_path / "runs" / "mine", tmp_path / "weights" / "mine", tmp_path / "blobs"]
    for path in (*mine, *others):
        path.mkdir(parents=True)

    with pytest.raises(StackError, match=r"demo-medvr.*--fresh removes it"):
        folder.refuse_leftovers()
    folder.remove()

    assert not any(path.exists() for path in mine)
    assert all(path.is_dir() for path in others)
    folder.refuse_leftovers()


def test_the_arms_differ_in_branching_and_tool_reward_alone(tmp_path: Path) -> None:
    lines = CommandLines(StackPaths(tmp_path), StackPorts.find(15_080))

    def flags(arm: Arm) -> dict[str, str]:
        command = lines.rollout(PLAN, arm).command[4:]
        return dict(zip(command[::2], command[1::2], strict=True))

    medvr, zoom_only = flags(Arm.MEDVR), flags(Arm.ZOOM_ONLY)
    assert {k: (medvr[k], zoom_only[k]) for k in medvr if medvr[k] != zoom_only[k]} == {
        "--run": ("demo-medvr", "demo-zoom-only"),
        "--branching": ("evr", "off"),
        "--reward-arm": ("cca", "none"),
    }
