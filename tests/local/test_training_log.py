"""What is read of a run while it goes on, joined with lesions the run never sees."""

import json
from pathlib import Path

import pytest

from services.local.curves import draw_curves
from services.local.training_display import seconds_left, span, sparkline
from services.local.training_log import TrainingLog, Truth, steps_until
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind, Problem, ProblemSetManifest, write_problem_set

LESION = Box(100, 100, 140, 140)
HIT, MISS, WHOLE = (90, 90, 150, 150), (0, 0, 60, 60), (0, 0, 336, 336)


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    problem = Problem(
        problem_id="p",
        image="0" * 64,
        image_size=ImageSize(336, 336),
        question="Where?",
        gold_answer="here",
        answer_kind=AnswerKind.FREE_TEXT,
    )
    manifest = ProblemSetManifest(name="set", num_problems=1, seed=0, source="a test")
    write_problem_set(tmp_path / "set", manifest, [problem], [("p", LESION)])
    return Truth(tmp_path / "set")


class Run:
    """Writes what a trainer writes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def step(
        self, step: int, *groups: list[list[tuple[int, int, int, int]]], **more: float
    ) -> None:
        for number, boxes in enumerate(groups):
            line = {"step": step, "group_id": f"g{step}-{number}", "problem_id": "p"}
            self.append("boxes.jsonl", json.dumps({**line, "boxes": boxes}) + "\n")
        self.append("steps.jsonl", json.dumps({"step": step, "time": 10.0 * step, **more}) + "\n")

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(text)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_the_hit_rate_is_that_of_all_trajectories_of_a_step(run: Run, truth: Truth) -> None:
    run.step(1, [[HIT], [MISS], [], [MISS, HIT]], [[WHOLE], [HIT], [HIT], [HIT]])
    log = TrainingLog(run.folder, truth)
    log.refresh()
    assert log.hit_rates() == {1: (2 / 4 + 3 / 4) / 2}


def test_only_whole_lines_are_read_and_each_once(run: Run, truth: Truth) -> None:
    run.step(1, [[HIT]], accuracy=0.5)
    log = TrainingLog(run.folder, truth)
    log.refresh()
    run.append("steps.jsonl", '{"step": 2, "acc')
    log.refresh()
    assert log.steps == [1]
    run.append("steps.jsonl", 'uracy": 1.0}\n')
    log.refresh()
    assert log.steps == [1, 2]
    assert log.figure(2, "accuracy") == 1.0
    assert log.recent("accuracy") == 0.75
    assert log.recent("nothing of the sort") is None


def test_a_step_that_is_taken_again_counts_once(run: Run, truth: Truth) -> None:
    """A resumed trainer replaces its files, without the steps that it will take again."""
    run.step(1, [[HIT]], accuracy=0.5)
    run.step(2, [[MISS]], [[MISS]], accuracy=0.1)
    log = TrainingLog(run.folder, truth)
    log.refresh()
    for name in ("steps.jsonl", "boxes.jsonl"):
        kept = (run.folder / name).read_text().splitlines(keepends=True)[0]
        (run.folder / "partial").write_text(kept)
        (run.folder / "partial").replace(run.folder / name)
    log.refresh()
    assert log.steps == [1]
    run.step(2, [[HIT]], accuracy=0.9)
    log.refresh()
    assert log.steps == [1, 2]
    assert log.figure(2, "accuracy") == 0.9
    assert log.hit_rates() == {1: 1.0, 2: 1.0}


def test_steps_until_is_the_first_whose_last_five_reach_it() -> None:
    rates = {1: 0.9, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.1, 6: 0.9, 7: 0.9, 8: 0.9, 9: 0.9}
    assert steps_until(rates, 0.6) == 9  # 0.58 over steps 4 to 8, 0.74 over 5 to 9
    assert steps_until({1: 1.0, 2: 1.0}, 0.6) is None
    assert steps_until(rates, 0.95) is None


def test_the_time_left_follows_the_recent_pace(run: Run, truth: Truth) -> None:
    log = TrainingLog(run.folder, truth)
    assert seconds_left(log, 10) is None
    for step in (1, 2, 3):
        run.step(step)
    log.refresh()
    assert seconds_left(log, 10) == 70.0
    assert span(70.0) == "1:10"


def test_a_sparkline_spans_from_least_to_greatest() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▄█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""


def test_curves_of_a_run_without_any_step_can_be_drawn(
    run: Run, truth: Truth, tmp_path: Path
) -> None:
    empty, full = TrainingLog(run.folder, truth), TrainingLog(run.folder, truth)
    draw_curves(tmp_path / "empty.png", empty, "none")
    for step in range(1, 8):
        run.step(step, [[HIT], [MISS]], accuracy=step / 10, reward=step / 10)
    full.refresh()
    draw_curves(tmp_path / "full.png", full, "some")
    assert (tmp_path / "full.png").stat().st_size > (tmp_path / "empty.png").stat().st_size
