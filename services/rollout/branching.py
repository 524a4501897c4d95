"""EVR (METHOD.md): at which calls a rollout branches. Pure functions: nothing waits or samples.

The budget of branches is shared by draws that succeed at about the same time, so who comes first
must not depend on how fast a server happened to answer. Order is therefore by *clock*: the time
at which a call would be written if every trajectory sampled one token per tick and a branch began
the moment its call was written. Servers that batch come close to it, so a branch can start at
once and is rarely overtaken by an earlier draw that becomes known later. Whatever the timing, the
branches of a group are those of `drawn_forks` over all its calls, then `filled_forks`.

`wanted_branches` says the same of the calls known so far. As calls become known,

* a branch that is no longer wanted never is again, so that giving one up is final;
* a branch never changes its origin: while there is budget to fill, every successful draw is drawn,
  so no call that a branch fills is drawn later;
* calls of branches that fill are no points of the group, so it waits for bases and drawn branches.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from shared.trajectory import ForkDecision, ForkOrigin


class BranchingArm(StrEnum):
    """How the budget of a group is spent."""

    EVR = "evr"
    """Half of it on branches, where the entropy rose."""
    RANDOM = "random"
    """The same with γ = 0: every parseable call forks with probability P_base."""
    OFF = "off"
    """Independent trajectories only."""


class BranchingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The knobs of METHOD.md, EVR, with its defaults."""

    arm: BranchingArm = BranchingArm.EVR
    group_size: int = 16
    """M: trajectories per problem."""
    base_probability: float = 0.5
    """P_base."""
    entropy_gain: float = 0.5
    """γ, per nat; 0 switches the threshold off."""
    entropy_increase_threshold_nats: float = 0.0
    """A call is a candidate only above it (strict)."""

    @property
    def gamma(self) -> float:
        """γ as the arm has it."""
        return 0.0 if self.arm is BranchingArm.RANDOM else self.entropy_gain

    @property
    def num_base(self) -> int:
        """Trajectories that start at once: M/2, or all where nothing branches."""
        return self.group_size if self.arm is BranchingArm.OFF else self.group_size // 2


class ForkPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A call at which a branch may be cut, and what EVR drew there."""

    trajectory_id: str
    call_index: int
    clock: int
    """Ticks from the start of the group to the end of the call's turn."""
    decision: ForkDecision
    """`branched` is settled only when all calls are known."""

    @property
    def order(self) -> tuple[int, str, int]:
        """Earlier calls have the first claim on the budget."""
        return (self.clock, self.trajectory_id, self.call_index)

    @property
    def is_drawn(self) -> bool:
        """Whether the draw succeeded."""
        return self.decision.draw < self.decision.probability


class FilledFork(NamedTuple):
    """A branch made to use up the budget; `copy` counts the branches at its call, from 1."""

    point: ForkPoint
    copy: int


class Branch(NamedTuple):
    """A branch that its group should have."""

    point: ForkPoint
    copy: int
    """Of the branches at its call, from 1."""
    origin: ForkOrigin
    """Drawn or filled."""

    @property
    def trajectory_id(self) -> str:
        """The id of the branch, not of the trajectory it is cut from."""
        return branch_id(self.point.trajectory_id, self.point.call_index, self.copy)


def branch_id(trajectory_id: str, call_index: int, copy: int = 1) -> str:
    """Id of the `copy`-th branch at a call: it spells its ancestry (`…/b03/1.2`)."""
    suffix = "" if copy == 1 else f".{copy}"
    return f"{trajectory_id}/{call_index}{suffix}"


def draw_at(trajectory_id: str, call_index: int) -> float:
    """Uniform in [0, 1), the same for ever for this call of this trajectory."""
    digest = hashlib.sha256(f"fork:{trajectory_id}:{call_index}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def fork_probability(entropy_increase_nats: float, settings: BranchingSettings) -> float:
    """P = clip(P_base + γ·ΔH_tool, 0, 1)."""
    raised = settings.base_probability + settings.gamma * entropy_increase_nats
    return min(1.0, max(0.0, raised))


def is_candidate(entropy_increase_nats: float, settings: BranchingSettings) -> bool:
    """ΔH_tool > threshold; always, where γ = 0."""
    return settings.gamma == 0 or entropy_increase_nats > settings.entropy_increase_threshold_nats


def decide(
    settings: BranchingSettings,
    *,
    trajectory_id: str,
    call_index: int,
    tool_entropy_nats: float,
    baseline_entropy_nats: float,
) -> ForkDecision:
    """The draw at one call: ΔH_tool = H_tool − H_base, candidate or not, P, u."""
    increase = tool_entropy_nats - baseline_entropy_nats
    candidate = is_candidate(increase, settings)
    return ForkDecision(
        tool_entropy_nats=tool_entropy_nats,
        entropy_increase_nats=increase,
        is_candidate=candidate,
        probability=fork_probability(increase, settings) if candidate else 0.0,
        draw=draw_at(trajectory_id, call_index),
        branched=False,
    )


def drawn_forks(
    points: Iterable[ForkPoint], base_ids: Iterable[str], budget: int
) -> list[ForkPoint]:
    """The drawing pass: the first `budget` successful draws in order of clock.

    Calls of a branch count only if the branch itself was drawn; its fork always comes before its
    own calls. Adding points can only displace the last ones of the list, never change its order.
    """
    drawn: list[ForkPoint] = []
    alive = set(base_ids)
    for point in sorted(points, key=lambda p: p.order):
        if len(drawn) == budget:
            break
        if point.trajectory_id in alive and point.is_drawn:
            drawn.append(point)
            alive.add(branch_id(point.trajectory_id, point.call_index))
    return drawn


def filled_forks(
    points: Iterable[ForkPoint], drawn: Sequence[ForkPoint], num_missing: int
) -> list[FilledFork]:
    """The fill pass: `num_missing` more branches, at the calls not branched yet in descending ΔH.

    Then second branches, third ones and so on, in turn over all calls in the same order. `points`
    are the calls of bases and drawn branches; empty if there are none to branch at.
    """
    by_increase = sorted(points, key=lambda p: (-p.decision.entropy_increase_nats, p.order))
    branched = {point.order for point in drawn}
    first = [FilledFork(point, 1) for point in by_increase if point.order not in branched]
    rounds = (FilledFork(point, copy) for copy in itertools.count(2) for point in by_increase)
    more = rounds if by_increase else ()
    return list(itertools.islice(itertools.chain(first, more), num_missing))


def wanted_branches(
    points: Collection[ForkPoint], base_ids: Collection[str], budget: int, *, all_known: bool
) -> list[Branch]:
    """Both passes over the calls known so far; second branches at a call once all are known."""
    drawn = drawn_forks(points, base_ids, budget)
    branches = [Branch(point, 1, ForkOrigin.DRAWN) for point in drawn]
    open_to_branches = {*base_ids, *(branch.trajectory_id for branch in branches)}
    candidates = [point for point in points if point.trajectory_id in open_to_branches]
    for point, copy in filled_forks(candidates, drawn, budget - len(drawn)):
        if copy == 1 or all_known:
            branches.append(Branch(point, copy, ForkOrigin.FILLED))
    return branches
