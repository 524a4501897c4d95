import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout.branching import (
    Branch,
    BranchingArm,
    BranchingSettings,
    ForkPoint,
    branch_id,
    decide,
    draw_at,
    drawn_forks,
    filled_forks,
    fork_probability,
    is_candidate,
    wanted_branches,
)
from shared.trajectory import ForkDecision, ForkOrigin

EVR = BranchingSettings()
RANDOM = BranchingSettings(arm=BranchingArm.RANDOM)


def point(
    trajectory_id: str,
    call_index: int = 0,
    *,
    clock: int,
    increase: float = 1.0,
    is_drawn: bool = True,
) -> ForkPoint:
    decision = ForkDecision(
        tool_entropy_nats=increase,
        entropy_increase_nats=increase,
        is_candidate=True,
        probability=0.5,
        draw=0.25 if is_drawn else 0.75,
        branched=False,
    )
    return ForkPoint(
        trajectory_id=trajectory_id, call_index=call_index, clock=clock, decision=decision
    )


@pytest.mark.parametrize(
    ("increase", "probability"), [(0.4, 0.7), (1.0, 1.0), (3.0, 1.0), (-0.4, 0.3), (-2.0, 0.0)]
)
def test_the_fork_probability_is_linear_in_the_increase_and_clipped(
    increase: float, probability: float
) -> None:
    assert fork_probability(increase, EVR) == pytest.approx(probability)


def test_a_call_is_a_candidate_only_strictly_above_the_threshold() -> None:
    raised = BranchingSettings(entropy_increase_threshold_nats=0.5)
    assert [is_candidate(x, EVR) for x in (-0.1, 0.0, 0.1)] == [False, False, True]
    assert [is_candidate(x, raised) for x in (0.4, 0.5, 0.6)] == [False, False, True]


def test_without_gain_the_threshold_is_off_and_every_call_forks_with_the_base_probability() -> None:
    for settings in (RANDOM, BranchingSettings(entropy_gain=0.0)):
        assert is_candidate(-3.0, settings)
        assert {fork_probability(x, settings) for x in (-3.0, 0.0, 3.0)} == {0.5}


def test_a_call_that_is_no_candidate_never_forks_but_keeps_its_record() -> None:
    decision = decide(
        EVR, trajectory_id="t", call_index=2, tool_entropy_nats=0.25, baseline_entropy_nats=0.75
    )
    assert decision == ForkDecision(
        tool_entropy_nats=0.25,
        entropy_increase_nats=-0.5,
        is_candidate=False,
        probability=0.0,
        draw=draw_at("t", 2),
        branched=False,
    )


def test_a_draw_belongs_to_its_trajectory_and_call() -> None:
    assert draw_at("run:0:p/b00", 0) == draw_at("run:0:p/b00", 0)
    draws = [draw_at(f"t{i}", index) for i in range(200) for index in range(5)]
    assert len(set(draws)) == 1000
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert statistics.mean(draws) == pytest.approx(0.5, abs=0.03)
    assert statistics.pstdev(draws) == pytest.approx(12**-0.5, abs=0.02)


def test_the_first_draws_by_clock_get_the_budget() -> None:
    late, early, middle = (point(name, clock=c) for name, c in (("a", 30), ("b", 10), ("c", 20)))
    assert drawn_forks([late, early, middle], "abc", budget=2) == [early, middle]


def test_a_draw_that_failed_takes_nothing_from_the_budget() -> None:
    failed, drawn = point("a", clock=1, is_drawn=False), point("b", clock=2)
    assert drawn_forks([failed, drawn], "ab", budget=1) == [drawn]


def test_the_calls_of_a_branch_count_only_if_it_was_drawn() -> None:
    parent, other = point("a", clock=10), point("b", clock=5)
    child = point(branch_id("a", 0), 1, clock=20)
    assert drawn_forks([parent, other, child], "ab", budget=3) == [other, parent, child]
    assert drawn_forks([parent, other, child], "ab", budget=1) == [other]
    failed = point("a", clock=10, is_drawn=False)
    assert drawn_forks([failed, other, child], "ab", budget=3) == [other]


points_of_a_rollout = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(1, 40), st.booleans()),
    unique_by=lambda p: p[:2],
    max_size=12,
).map(
    lambda rows: [
        point(name, index, clock=100 * index + clock, is_drawn=is_drawn)
        for name, index, clock, is_drawn in rows
    ]
)


@given(points_of_a_rollout, st.integers(0, 8), st.randoms())
def test_what_is_drawn_does_not_depend_on_the_order_in_which_calls_become_known(
    points: list[ForkPoint], budget: int, source: object
) -> None:
    shuffled = list(points)
    source.shuffle(shuffled)  # pyright: ignore
    expected = drawn_forks(points, "abcd", budget)
    assert drawn_forks(shuffled, "abcd", budget) == expected
    assert len(expected) == min(budget, sum(p.is_drawn for p in points))


@given(points_of_a_rollout, st.integers(1, 8))
def test_a_call_that_becomes_known_late_displaces_only_the_last_ones(
    points: list[ForkPoint], budget: int
) -> None:
    for known in itertools.pairwise(range(len(points) + 1)):
        before, after = (drawn_forks(points[:n], "abcd", budget) for n in known)
        stayed = [p for p in before if p in after]
        assert stayed == before[: len(stayed)]
        assert len(before) - len(stayed) <= 1


def test_the_fill_takes_unbranched_calls_in_descending_increase_then_goes_round() -> None:
    drawn = point("a", clock=1, increase=0.9)
    low = point("b", clock=2, increase=-0.3, is_drawn=False)
    high = point("c", clock=3, increase=1.7, is_drawn=False)
    forks = filled_forks([drawn, low, high], [drawn], num_missing=8)
    assert [(fork.point.trajectory_id, fork.copy) for fork in forks] == [
        ("c", 1),
        ("b", 1),
        ("c", 2),
        ("a", 2),
        ("b", 2),
        ("c", 3),
        ("a", 3),
        ("b", 3),
    ]
    assert filled_forks([drawn, low, high], [drawn], num_missing=1) == forks[:1]


def test_there_is_nothing_to_fill_where_nobody_called() -> None:
    assert filled_forks([], [], num_missing=8) == []


def test_second_branches_at_a_call_are_wanted_only_when_all_calls_are_known() -> None:
    low = point("a", clock=1, increase=0.2, is_drawn=False)
    high = point("b", clock=2, increase=0.4, is_drawn=False)

    def wanted(all_known: bool) -> list[str]:
        branches = wanted_branches([low, high], "ab", budget=4, all_known=all_known)
        return [branch.trajectory_id for branch in branches]

    assert wanted(all_known=False) == ["b/0", "a/0"]
    assert wanted(all_known=True) == ["b/0", "a/0", "b/0.2", "a/0.2"]


def calls_to_come(world: int, trajectory_id: str, begun_at: int = 0) -> list[ForkPoint]:
    """What a trajectory of an imagined group will call; the same whenever it is asked."""
    source = random.Random(f"{world}:{trajectory_id}")
    gaps = [source.randint(1, 40) for _ in range(source.randint(0, 3))]
    return [
        point(
            trajectory_id,
            index,
            clock=begun_at + sum(gaps[: index + 1]),
            increase=source.choice([-0.5, 0.0, 0.5, 1.5]),
            is_drawn=source.random() < 0.4,
        )
        for index in range(len(gaps))
    ]


def both_passes(world: int, base_ids: str, budget: int) -> list[Branch]:
    """One after the other: the fill only when everything that is drawn has made its calls."""
    points = [call for name in base_ids for call in calls_to_come(world, name)]
    num_ended = 0
    while num_ended < len(drawn := drawn_forks(points, base_ids, budget)):
        fork = drawn[num_ended]
        name = branch_id(fork.trajectory_id, fork.call_index)
        points += calls_to_come(world, name, fork.clock)
        num_ended += 1
    filled = filled_forks(points, drawn, budget - len(drawn))
    return [Branch(fork, 1, ForkOrigin.DRAWN) for fork in drawn] + [
        Branch(fork.point, fork.copy, ForkOrigin.FILLED) for fork in filled
    ]


@given(st.integers(0), st.integers(0, 8), st.randoms())
def test_what_is_wanted_in_the_end_are_both_passes_in_whatever_order_calls_become_known(
    world: int, budget: int, source: random.Random
) -> None:
    to_come = {name: calls_to_come(world, name) for name in "abcd"}
    points: list[ForkPoint] = []
    wanted: dict[str, Branch] = {}
    given_up: set[str] = set()
    while talkative := [name for name, calls in to_come.items() if calls]:
        points.append(to_come[source.choice(talkative)].pop(0))
        branches = wanted_branches(points, "abcd", budget, all_known=False)
        now = {branch.trajectory_id: branch for branch in branches}
        given_up |= wanted.keys() - now.keys()
        assert not given_up & now.keys(), "what was given up is never wanted again"
        kept = now.keys() & wanted.keys()
        assert all(now[name].origin is wanted[name].origin for name in kept)
        for name in now.keys() - wanted.keys():
            to_come[name] = calls_to_come(world, name, now[name].point.clock)
        for name in given_up & to_come.keys():
            del to_come[name]
        points = [call for call in points if call.trajectory_id not in given_up]
        wanted = now
    settled = wanted_branches(points, "abcd", budget, all_known=True)
    assert settled == both_passes(world, "abcd", budget)
    assert wanted.keys() <= {branch.trajectory_id for branch in settled}


def test_the_id_of_a_branch_spells_its_ancestry() -> None:
    child = branch_id("g/b03", 1)
    assert (child, branch_id(child, 2, copy=2)) == ("g/b03/1", "g/b03/1/2.2")
