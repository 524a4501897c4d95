import asyncio
import itertools
from collections import Counter
from pathlib import Path

import pytest

from services.rollout.branching import BranchingArm, BranchingSettings, branch_id, draw_at
from shared.errors import PolicyError
from shared.trajectory import ForkOrigin, StopReason, Trajectory, Turn
from tests.rollout.scripted_policy import Word, answer, improvise, look, rest_of_look, words
from tests.rollout.stage import (
    BOX,
    SURE,
    UNSURE,
    Stage,
    origins,
    play,
    set_stage,
)


def decisions(trajectory: Trajectory) -> list:
    return [turn.call.fork for turn in trajectory.turns if turn.call is not None]


async def test_half_the_budget_is_base_trajectories_and_a_branch_cuts_before_the_coordinate(
    stage: Stage,
) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", look(BOX, inside=UNSURE), answer("A"))
    for name in ("g/b00/0", "g/b01/0"):
        stage.script.rehearse(name, rest_of_look((84, 84, 126, 126)), answer("B"))
    trajectories = await play(stage)

    assert origins(trajectories) == {
        "g/b00": ForkOrigin.BASE,
        "g/b01": ForkOrigin.BASE,
        "g/b00/0": ForkOrigin.DRAWN,
        "g/b01/0": ForkOrigin.DRAWN,
    }
    parent, branch = trajectories["g/b00"], trajectories["g/b00/0"]
    assert (branch.parent_id, branch.forked_at_turn) == ("g/b00", 0)
    cut = branch.forked_at_token
    assert cut is not None
    shared = parent.turns[0].generation.token_ids[:cut]
    assert branch.turns[0].generation.token_ids[:cut] == shared
    assert "".join(parent.turns[0].generation.token_texts[cut:]).startswith("21, 21")
    assert branch.turns[0].call is not None
    assert branch.turns[0].call.bbox_2d == (84, 84, 126, 126)
    assert branch.baseline_entropy_nats == parent.baseline_entropy_nats


async def test_every_figure_of_a_decision_is_on_record(stage: Stage) -> None:
    stage.script.rehearse("g/b00", look(BOX, before=0.25, inside=0.75), answer("A"))
    stage.script.rehearse("g/b01", answer("A"))
    settings = BranchingSettings(group_size=2, base_probability=0.5, entropy_gain=0.5)
    (trajectory, *_) = (await play(stage, settings)).values()

    (fork,) = decisions(trajectory)
    assert fork.tool_entropy_nats == pytest.approx(0.75)
    assert fork.entropy_increase_nats == pytest.approx(0.5)
    assert fork.is_candidate
    assert fork.probability == pytest.approx(0.75)
    assert fork.draw == draw_at("g/b00", 0)
    assert fork.branched is (fork.draw < 0.75)


async def test_the_resampled_call_is_no_candidate_but_the_later_calls_of_a_branch_are(
    stage: Stage,
) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", answer("A"))
    stage.script.rehearse(
        "g/b00/0", rest_of_look(BOX, inside=9.0), look(BOX, inside=UNSURE), answer("A")
    )
    stage.script.rehearse("g/b00/0/1", rest_of_look(BOX), answer("A"), first_turn=1)
    trajectories = await play(stage)

    assert set(trajectories) == {"g/b00", "g/b01", "g/b00/0", "g/b00/0/1"}
    resampled, later = decisions(trajectories["g/b00/0"])
    assert resampled is None
    assert later.branched
    grandchild = trajectories["g/b00/0/1"]
    assert (grandchild.parent_id, grandchild.forked_at_turn) == ("g/b00/0", 1)
    assert grandchild.turns[0] == trajectories["g/b00/0"].turns[0]


async def test_a_call_without_an_increase_forks_only_to_fill_the_budget(stage: Stage) -> None:
    for name in ("g/b00", "g/b01"):
        stage.script.rehearse(name, look(BOX, inside=SURE), answer("A"))
    trajectories = await play(stage)
    assert Counter(t.origin for t in trajectories.values()) == {
        ForkOrigin.BASE: 2,
        ForkOrigin.FILLED: 2,
    }
    (fork,) = decisions(trajectories["g/b00"])
    assert (fork.is_candidate, fork.probability, fork.branched) == (False, 0.0, False)


async def test_with_no_gain_calls_without_an_increase_fork_as_well(stage: Stage) -> None:
    for name in ("g/b00", "g/b01"):
        stage.script.rehearse(name, look(BOX, inside=SURE), answer("A"))
    random_arm = BranchingSettings(
        arm=BranchingArm.RANDOM, group_size=4, base_probability=1.0, entropy_gain=0.5
    )
    trajectories = await play(stage, random_arm)
    assert Counter(t.origin for t in trajectories.values()) == {
        ForkOrigin.BASE: 2,
        ForkOrigin.DRAWN: 2,
    }


async def test_a_call_that_does_not_parse_never_forks(stage: Stage) -> None:
    for name in ("g/b00", "g/b01"):
        stage.script.rehearse(
            name, words("<think>x</think><tool_call>[1, 2</tool_call>", 5.0), answer("A")
        )
    trajectories = await play(stage)
    assert Counter(t.origin for t in trajectories.values()) == {
        ForkOrigin.BASE: 2,
        ForkOrigin.FRESH: 2,
    }
    assert decisions(trajectories["g/b00"]) == [None]


async def test_the_drawing_pass_branches_at_most_once_at_a_prefix(stage: Stage) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", look(BOX, inside=UNSURE), answer("A"))
    for name in ("g/b00/0", "g/b01/0"):
        stage.script.rehearse(name, rest_of_look(BOX, inside=UNSURE), answer("A"))
    settings = BranchingSettings(group_size=12, base_probability=1.0)
    for index in range(2, 6):
        stage.script.rehearse(f"g/b{index:02d}", answer("A"))
    trajectories = await play(stage, settings)
    drawn = [name for name, t in trajectories.items() if t.origin is ForkOrigin.DRAWN]
    assert drawn == ["g/b00/0", "g/b01/0"]


async def test_the_fill_goes_down_the_increase_and_then_round(stage: Stage) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=0.5), look(BOX, inside=2.0), answer("A"))
    stage.script.rehearse("g/b01", look(BOX, inside=1.0), answer("A"))
    stage.script.rehearse("g/b02", answer("A"))
    stage.script.rehearse("g/b03", answer("A"))
    settings = BranchingSettings(group_size=8, base_probability=0.0, entropy_gain=1e-9)
    trajectories = await play(stage, settings)
    filled = [name for name, t in trajectories.items() if t.origin is ForkOrigin.FILLED]
    assert sorted(filled) == ["g/b00/0", "g/b00/1", "g/b00/1.2", "g/b01/0"]


async def test_fresh_base_trajectories_come_only_if_nobody_called_the_tool(stage: Stage) -> None:
    for index in range(4):
        stage.script.rehearse(f"g/b{index:02d}", answer("A"))
    trajectories = await play(stage)
    assert origins(trajectories) == {
        "g/b00": ForkOrigin.BASE,
        "g/b01": ForkOrigin.BASE,
        "g/b02": ForkOrigin.FRESH,
        "g/b03": ForkOrigin.FRESH,
    }
    assert [t.trajectory_id for t in trajectories.values() if t.parent_id] == []


async def test_independent_samples_that_are_equal_stay(stage: Stage) -> None:
    for index in range(4):
        stage.script.rehearse(f"g/b{index:02d}", answer("A"))
    trajectories = await play(stage)
    texts = {t.turns[0].generation.text for t in trajectories.values()}
    assert (len(texts), len(trajectories)) == (1, 4)
    assert len({t.seed for t in trajectories.values()}) == 4


async def test_with_branching_off_all_are_independent_and_nothing_is_looked_at(
    stage: Stage,
) -> None:
    settings = BranchingSettings(arm=BranchingArm.OFF, group_size=6)
    trajectories = await play(stage, settings)
    assert set(origins(trajectories).values()) == {ForkOrigin.BASE}
    assert len(trajectories) == 6
    assert all(fork is None for t in trajectories.values() for fork in decisions(t))


@pytest.mark.parametrize("number", range(6))
async def test_there_are_always_exactly_as_many_as_the_budget(stage: Stage, number: int) -> None:
    settings = BranchingSettings(group_size=16, base_probability=number / 5)
    trajectories = await play(stage, settings, group_id=f"g{number}")
    assert len(trajectories) == 16
    by_origin = Counter(t.origin for t in trajectories.values())
    assert by_origin[ForkOrigin.BASE] == 8
    assert all(fork_record_is_consistent(t, trajectories) for t in trajectories.values())


def fork_record_is_consistent(trajectory: Trajectory, trajectories: dict[str, Trajectory]) -> bool:
    """A branch repeats its parent up to the cut, and the parent knows whether it was drawn."""
    if trajectory.parent_id is None:
        return True
    parent = trajectories[trajectory.parent_id]
    turn, cut = trajectory.forked_at_turn, trajectory.forked_at_token
    assert turn is not None
    call = parent.turns[turn].call
    assert call is not None
    assert call.fork is not None
    assert trajectory.turns[:turn] == parent.turns[:turn]
    assert call.first_coordinate_token == cut
    ours, theirs = trajectory.turns[turn].generation, parent.turns[turn].generation
    is_first = branch_id(parent.trajectory_id, call.index) == trajectory.trajectory_id
    if trajectory.origin is ForkOrigin.DRAWN:
        assert is_first
        assert call.fork.branched
    return ours.token_ids[:cut] == theirs.token_ids[:cut]


def as_script(trajectory: Trajectory) -> list[list[Word]]:
    """What a trajectory sampled itself, turn by turn, with the entropies on record."""
    turn_of_cut = trajectory.forked_at_turn or 0
    cuts = [trajectory.forked_at_token or 0, *itertools.repeat(0, len(trajectory.turns))]

    def sampled(turn: Turn, cut: int) -> list[Word]:
        generation = turn.generation
        rows = zip(generation.token_texts, generation.entropies_nats, strict=True)
        return [Word(text, nats) for text, nats in list(rows)[cut:]]

    own = trajectory.turns[turn_of_cut:]
    return [sampled(turn, cut) for turn, cut in zip(own, cuts, strict=False)]


def say_something_else(seed: int, is_box_begun: bool) -> list[Word]:
    """For a branch that is begun and given up, which no record has."""
    return improvise(seed + 1, is_box_begun)


async def test_a_rollout_replays_exactly_from_its_record(tmp_path: Path) -> None:
    settings = BranchingSettings(group_size=10)
    async with set_stage(tmp_path / "blobs") as stage:
        first = await play(stage, settings)
    assert Counter(t.origin for t in first.values())[ForkOrigin.DRAWN] > 0
    async with set_stage(tmp_path / "blobs") as stage:
        stage.script.improvise = say_something_else
        for trajectory in first.values():
            stage.script.rehearse(
                trajectory.trajectory_id,
                *as_script(trajectory),
                first_turn=trajectory.forked_at_turn or 0,
            )
        again = await play(stage, settings)
    assert list(again.values()) == list(first.values())


async def test_the_first_failure_ends_the_whole_group(stage: Stage) -> None:
    stage.script.failures.extend([500])
    never = asyncio.Event()

    async def hang(_: int) -> None:
        await never.wait()

    stage.script.before_turn = hang
    with pytest.raises(PolicyError, match="Scripted failure"):
        await asyncio.wait_for(play(stage), 20)


async def test_a_trajectory_without_a_call_still_has_a_baseline(stage: Stage) -> None:
    for index in range(4):
        stage.script.rehearse(f"g/b{index:02d}", answer("A", nats=0.5))
    trajectories = await play(stage)
    assert {t.baseline_entropy_nats for t in trajectories.values()} == {0.5}
    assert {t.stop_reason for t in trajectories.values()} == {StopReason.ANSWERED}


def test_improvised_turns_depend_on_their_seed_alone() -> None:
    assert improvise(5, is_box_begun=False) == improvise(5, is_box_begun=False)
