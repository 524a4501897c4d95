"""When branches start, and that a group is the same whatever the timing."""

import asyncio
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from fastapi import HTTPException
from hypothesis import strategies as st

from services.rollout.branching import (
    BranchingSettings,
    ForkPoint,
    branch_id,
    drawn_forks,
    filled_forks,
)
from services.rollout.group import trajectory_seed
from shared.agent.episode import turn_seed
from shared.errors import PolicyError
from shared.trajectory import ForkDecision, ForkOrigin, Trajectory
from tests.rollout.scripted_policy import answer, look, rest_of_look
from tests.rollout.stage import (
    ALWAYS,
    BOX,
    NEVER,
    SURE,
    UNSURE,
    Stage,
    origins,
    play,
    set_stage,
)


def seed_of(trajectory_id: str, turn_index: int) -> int:
    """What a request of the turn is known by."""
    return turn_seed(trajectory_seed(trajectory_id), turn_index)


def forks(trajectory: Trajectory) -> list[ForkDecision]:
    calls = [turn.call for turn in trajectory.turns if turn.call is not None]
    return [call.fork for call in calls if call.fork is not None]


async def test_a_branch_starts_the_moment_its_fork_is_known(stage: Stage) -> None:
    for name in ("g/b00", "g/b01"):
        stage.script.rehearse(name, look(BOX, inside=UNSURE), answer("A"))
    branch_seeds = {seed_of(f"g/b0{i}/0", 0) for i in range(2)}
    last_turns = {seed_of(f"g/b0{i}", 1) for i in range(2)}
    gate = asyncio.Event()

    async def wait_for_the_branches(seed: int) -> None:
        if seed in last_turns:
            await asyncio.wait_for(gate.wait(), 20)
        elif branch_seeds <= {request.seed for request in stage.script.requests}:
            gate.set()

    stage.script.before_turn = wait_for_the_branches
    trajectories = await play(stage)
    assert Counter(origins(trajectories).values()) == {ForkOrigin.BASE: 2, ForkOrigin.DRAWN: 2}


async def test_a_draw_that_becomes_known_late_takes_the_place_of_a_later_one(stage: Stage) -> None:
    """By clock b01's call comes before the second one of b00, but it is answered long after it."""
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", look(BOX, inside=UNSURE), answer("A"))
    for name in ("g/b00/0", "g/b01/0"):
        stage.script.rehearse(name, rest_of_look(BOX), answer("A"))
    slow = seed_of("g/b01", 0)
    given_up = seed_of("g/b00/1", 1)
    gate, never = asyncio.Event(), asyncio.Event()

    async def hold(seed: int) -> None:
        if seed == slow:
            await asyncio.wait_for(gate.wait(), 20)
        elif seed == given_up:
            gate.set()
            await never.wait()

    stage.script.before_turn = hold
    displaced: list[int] = []
    trajectories = await play(stage, on_displaced=lambda: displaced.append(1))
    assert set(trajectories) == {"g/b00", "g/b01", "g/b00/0", "g/b01/0"}
    assert displaced == [1]
    first, second = forks(trajectories["g/b00"])
    assert (first.branched, second.branched) == (True, False)
    assert second.draw < second.probability, "it had been drawn, but the budget went elsewhere"


async def test_a_branch_that_fills_the_budget_starts_before_all_calls_are_known(
    stage: Stage,
) -> None:
    for name in ("g/b00", "g/b01"):
        stage.script.rehearse(name, look(BOX, inside=UNSURE), answer("A"))
    filling = {seed_of(f"g/b0{i}/0", 0) for i in range(2)}
    last_turns = {seed_of(f"g/b0{i}", 1) for i in range(2)}
    gate = asyncio.Event()

    async def wait_for_the_branches(seed: int) -> None:
        if seed in last_turns:
            await asyncio.wait_for(gate.wait(), 20)
        elif filling <= {request.seed for request in stage.script.requests}:
            gate.set()

    stage.script.before_turn = wait_for_the_branches
    trajectories = await play(stage, NEVER)
    assert Counter(origins(trajectories).values()) == {ForkOrigin.BASE: 2, ForkOrigin.FILLED: 2}


@pytest.mark.parametrize("late", [ALWAYS, NEVER], ids=["drawn", "of a higher increase"])
async def test_a_filling_branch_that_gives_way_to_a_late_call_leaves_no_trace(
    stage: Stage, late: BranchingSettings
) -> None:
    """b00's calls are no candidates; they fill both places until b01's call is known.

    The branch at the second of them has ended by then, with a call at which anyone would branch.
    """
    stage.script.rehearse("g/b00", look(BOX, inside=SURE), look(BOX, inside=SURE), answer("A"))
    stage.script.rehearse("g/b01", look(BOX, inside=UNSURE), answer("A"))
    for name in ("g/b00/0", "g/b01/0"):
        stage.script.rehearse(name, rest_of_look(BOX), answer("A"))
    stage.script.rehearse(
        "g/b00/1", rest_of_look(BOX), look(BOX, inside=9.0), answer("A"), first_turn=1
    )
    gate = asyncio.Event()

    async def hold(seed: int) -> None:
        if seed == seed_of("g/b00/1", 3):
            gate.set()
        elif seed == seed_of("g/b01", 0):
            await asyncio.wait_for(gate.wait(), 20)
            await asyncio.sleep(0.1)

    stage.script.before_turn = hold
    displaced: list[int] = []
    trajectories = await play(stage, late, on_displaced=lambda: displaced.append(1))
    assert origins(trajectories) == {
        "g/b00": ForkOrigin.BASE,
        "g/b01": ForkOrigin.BASE,
        "g/b00/0": ForkOrigin.FILLED,
        "g/b01/0": ForkOrigin.DRAWN if late is ALWAYS else ForkOrigin.FILLED,
    }
    assert displaced == [1]
    assert [fork.branched for fork in forks(trajectories["g/b00"])] == [False, False]


async def test_a_filling_branch_that_is_still_wanted_in_the_end_is_not_begun_again(
    stage: Stage,
) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", answer("A"))
    for name in ("g/b00/0", "g/b00/0.2"):
        stage.script.rehearse(name, rest_of_look(BOX), answer("A"))
    trajectories = await play(stage, NEVER)
    assert set(trajectories) == {"g/b00", "g/b01", "g/b00/0", "g/b00/0.2"}
    asked = Counter(request.seed for request in stage.script.requests)
    assert asked[seed_of("g/b00/0", 0)] == 1


async def test_second_branches_at_a_call_wait_for_what_is_drawn(stage: Stage) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", answer("A"))
    for name in ("g/b00/0", "g/b00/0.2"):
        stage.script.rehearse(name, rest_of_look(BOX), answer("A"))
    last_of_bases = {seed_of("g/b00", 1), seed_of("g/b01", 0)}
    gate = asyncio.Event()
    asked_too_early: list[bool] = []

    async def hold(seed: int) -> None:
        asked = {request.seed for request in stage.script.requests}
        if last_of_bases <= asked:
            gate.set()
        if seed == seed_of("g/b00/0", 1):
            await asyncio.wait_for(gate.wait(), 20)
            await asyncio.sleep(0.1)
            asked = {request.seed for request in stage.script.requests}
            asked_too_early.append(seed_of("g/b00/0.2", 0) in asked)

    stage.script.before_turn = hold
    trajectories = await play(stage)
    assert origins(trajectories)["g/b00/0"] is ForkOrigin.DRAWN
    assert origins(trajectories)["g/b00/0.2"] is ForkOrigin.FILLED
    assert asked_too_early == [False]


async def test_a_failure_of_a_branch_that_fills_early_ends_the_whole_group(stage: Stage) -> None:
    stage.script.rehearse("g/b00", look(BOX, inside=UNSURE), answer("A"))
    stage.script.rehearse("g/b01", answer("A"))
    never = asyncio.Event()

    async def fail(seed: int) -> None:
        if seed == seed_of("g/b00/0", 0):
            raise HTTPException(500, "Scripted failure")
        if seed == seed_of("g/b00", 1):
            await never.wait()

    stage.script.before_turn = fail
    with pytest.raises(PolicyError, match="Scripted failure"):
        await asyncio.wait_for(play(stage, NEVER), 20)


# -- the same group under any delays ----------------------------------------------------------


def clock_of(group: dict[str, Trajectory], trajectory: Trajectory, turn_index: int) -> int:
    """When a turn was over, if a trajectory samples one token per tick."""
    turns = [len(turn.generation.token_ids) for turn in trajectory.turns]
    clock = sum(turns[: turn_index + 1])
    if trajectory.parent_id is None:
        return clock
    cut, token = trajectory.forked_at_turn, trajectory.forked_at_token
    assert cut is not None
    assert token is not None
    inherited = sum(turns[:cut]) + token
    return clock_of(group, group[trajectory.parent_id], cut) + clock - inherited


def calls_to_branch_at(group: dict[str, Trajectory]) -> list[ForkPoint]:
    """All calls of bases and drawn branches, but what they inherited or resampled."""
    return [
        ForkPoint(
            trajectory_id=name,
            call_index=turn.call.index,
            clock=clock_of(group, trajectory, index),
            decision=turn.call.fork,
        )
        for name, trajectory in group.items()
        if trajectory.origin in (ForkOrigin.BASE, ForkOrigin.DRAWN)
        for index, turn in enumerate(trajectory.turns)
        if index >= (trajectory.forked_at_turn or 0)
        and turn.call is not None
        and turn.call.fork is not None
    ]


def branches_by_the_rule(group: dict[str, Trajectory], budget: int) -> dict[str, ForkOrigin]:
    """The drawing pass over all calls, then the fill pass."""
    points = calls_to_branch_at(group)
    base_ids = [name for name, t in group.items() if t.origin is ForkOrigin.BASE]
    drawn = drawn_forks(points, base_ids, budget)
    filled = filled_forks(points, drawn, budget - len(drawn))
    return {
        **{branch_id(p.trajectory_id, p.call_index): ForkOrigin.DRAWN for p in drawn},
        **{branch_id(p.trajectory_id, p.call_index, n): ForkOrigin.FILLED for p, n in filled},
    }


@pytest.mark.parametrize("base_probability", [0.0, 0.3, 0.8])
def test_a_group_is_both_passes_over_all_its_calls_whatever_the_delays(
    tmp_path: Path, base_probability: float
) -> None:
    branching = BranchingSettings(group_size=12, base_probability=base_probability)
    displaced: list[int] = []

    async def play_with(delays_ms: list[int]) -> dict[str, Trajectory]:
        """A turn takes as long as its seed says."""

        async def pause(seed: int) -> None:
            await asyncio.sleep(1e-3 * delays_ms[seed % len(delays_ms)])

        async with set_stage(tmp_path / "blobs") as stage:
            stage.script.before_turn = pause
            group = await play(stage, branching, on_displaced=lambda: displaced.append(1))
            asked = Counter(request.seed for request in stage.script.requests)
        assert max(asked.values()) == 1, "nothing is begun twice"
        return group

    expected = asyncio.run(play_with([0]))
    branches = {name: t.origin for name, t in expected.items() if t.parent_id is not None}
    assert branches == branches_by_the_rule(expected, budget=6)

    @hypothesis.settings(max_examples=15)
    @hypothesis.given(st.lists(st.sampled_from([0, 10, 30, 60]), min_size=7, max_size=7))
    def play_again(delays_ms: list[int]) -> None:
        assert list(asyncio.run(play_with(delays_ms)).values()) == list(expected.values())

    play_again()
    assert displaced, "the timing did differ"
