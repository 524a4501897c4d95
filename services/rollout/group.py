"""One problem → the trajectories of one group: bases and branches side by side, then the fill.

A branch starts the moment its call is written. When the budget is full and an earlier draw (by
clock, see branching.py) becomes known late, the last branch is given up for it: so the group is
the same whatever the timing, and replays from its record. Every trajectory is a task of one
`TaskGroup`: the first `BoundaryError` cancels the others and leaves `roll_out` alone.
"""

import asyncio
import hashlib
from collections.abc import Callable

import msgspec

from services.rollout.branching import (
    BranchingArm,
    BranchingSettings,
    ForkPoint,
    branch_id,
    decide,
    drawn_forks,
    filled_forks,
)
from shared.agent.environment import OpenedProblem, Policy, Zoom
from shared.agent.episode import CallMade, EpisodeSettings, OnCall, Prefix, run_episode
from shared.trajectory import ForkOrigin, Trajectory, Turn

OnDisplaced = Callable[[], None]


def trajectory_seed(trajectory_id: str) -> int:
    """Sampling seed of a trajectory, from its id."""
    digest = hashlib.sha256(f"seed:{trajectory_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


async def roll_out(
    policy: Policy,
    zoom: Zoom,
    opened: OpenedProblem,
    *,
    group_id: str,
    episode: EpisodeSettings,
    branching: BranchingSettings,
    on_displaced: OnDisplaced | None = None,
) -> list[Trajectory]:
    """Exactly M trajectories: bases first, then branches, parents before children.

    Raises the first `BoundaryError` of any trajectory.
    """
    rollout = _GroupRollout(policy, zoom, opened, group_id, episode, branching, on_displaced)
    try:
        await rollout.draw()
        await rollout.fill()
    except BaseExceptionGroup as errors:
        raise _first_error(errors) from errors
    return rollout.trajectories()


def _first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first


class _GroupRollout:
    def __init__(
        self,
        policy: Policy,
        zoom: Zoom,
        opened: OpenedProblem,
        group_id: str,
        episode: EpisodeSettings,
        branching: BranchingSettings,
        on_displaced: OnDisplaced | None,
    ) -> None:
        self._policy = policy
        self._zoom = zoom
        self._opened = opened
        self._group_id = group_id
        self._episode = episode
        self._branching = branching
        self._on_displaced = on_displaced
        self._base_ids = [self._base_id(index) for index in range(branching.num_base)]
        self._budget = branching.group_size - branching.num_base
        self._points: dict[tuple[str, int], ForkPoint] = {}
        self._prefixes: dict[tuple[str, int], Prefix] = {}
        self._drawn: list[ForkPoint] = []
        self._running: dict[str, asyncio.Task[None]] = {}
        self._started_at: dict[str, int] = {}
        """Clock at which a trajectory began, minus the tokens it inherited."""
        self._finished: dict[str, Trajectory] = {}

    # -- the drawing pass ---------------------------------------------------------------------

    async def draw(self) -> None:
        """Run the bases and every branch that is drawn, until all their calls are known."""
        async with asyncio.TaskGroup() as tasks:
            for trajectory_id in self._base_ids:
                self._start(tasks, trajectory_id, ForkOrigin.BASE, on_call=self._draw_at(tasks))

    def _draw_at(self, tasks: asyncio.TaskGroup) -> OnCall:
        def on_call(made: CallMade) -> None:
            self._note(made)
            if not made.is_resampled:
                self._redraw(tasks)

        return on_call

    def _redraw(self, tasks: asyncio.TaskGroup) -> None:
        """Start the branches that are drawn now, give up those that no longer are."""
        before = {point.order for point in self._drawn}
        drawn = drawn_forks(self._points.values(), self._base_ids, self._budget)
        now = {point.order for point in drawn}
        for point in self._drawn:
            if point.order not in now:
                self._give_up(branch_id(point.trajectory_id, point.call_index))
        self._drawn = drawn
        for point in drawn:
            if point.order not in before:
                self._branch(tasks, point, 1, ForkOrigin.DRAWN, on_call=self._draw_at(tasks))

    def _give_up(self, trajectory_id: str) -> None:
        """Cancel a branch and forget it; it was the last in order, so nothing came of it."""
        self._running.pop(trajectory_id).cancel()
        self._finished.pop(trajectory_id, None)
        for key in [key for key in self._points if key[0] == trajectory_id]:
            del self._points[key], self._prefixes[key]
        if self._on_displaced is not None:
            self._on_displaced()

    # -- the fill pass ------------------------------------------------------------------------

    async def fill(self) -> None:
        """Use up the budget: more branches, or more bases if nobody called the tool."""
        num_missing = self._branching.group_size - len(self._finished)
        forks = filled_forks(self._points.values(), self._drawn, num_missing)
        async with asyncio.TaskGroup() as tasks:
            for point, copy in forks:
                self._branch(tasks, point, copy, ForkOrigin.FILLED, on_call=self._note)
            for index in range(num_missing - len(forks)):
                trajectory_id = self._base_id(self._branching.num_base + index)
                self._start(tasks, trajectory_id, ForkOrigin.FRESH, on_call=self._note)

    # -- trajectories -------------------------------------------------------------------------

    def _base_id(self, index: int) -> str:
        return f"{self._group_id}/b{index:02d}"

    def _branch(
        self,
        tasks: asyncio.TaskGroup,
        point: ForkPoint,
        copy: int,
        origin: ForkOrigin,
        on_call: OnCall,
    ) -> None:
        prefix = self._prefixes[point.trajectory_id, point.call_index]
        trajectory_id = branch_id(point.trajectory_id, point.call_index, copy)
        inherited = sum(len(turn.generation.token_ids) for turn in prefix.turns)
        inherited += len(prefix.generation.token_ids)
        self._started_at[trajectory_id] = point.clock - inherited
        self._start(tasks, trajectory_id, origin, prefix=prefix, on_call=on_call)

    def _start(
        self,
        tasks: asyncio.TaskGroup,
        trajectory_id: str,
        origin: ForkOrigin,
        *,
        on_call: OnCall,
        prefix: Prefix | None = None,
    ) -> None:
        self._running[trajectory_id] = tasks.create_task(
            self._attempt(trajectory_id, origin, on_call, prefix)
        )

    async def _attempt(
        self, trajectory_id: str, origin: ForkOrigin, on_call: OnCall, prefix: Prefix | None
    ) -> None:
        self._finished[trajectory_id] = await run_episode(
            self._policy,
            self._zoom,
            self._opened,
            trajectory_id=trajectory_id,
            seed=trajectory_seed(trajectory_id),
            settings=self._episode,
            prefix=prefix,
            origin=origin,
            on_call=None if self._branching.arm is BranchingArm.OFF else on_call,
        )

    def _note(self, made: CallMade) -> None:
        """Keep a call as a point to fork at; a resampled one shares its prefix with another."""
        if made.is_resampled:
            return
        key = (made.trajectory_id, made.call_index)
        self._prefixes[key] = made.prefix
        self._points[key] = ForkPoint(
            trajectory_id=made.trajectory_id,
            call_index=made.call_index,
            clock=self._started_at.get(made.trajectory_id, 0) + made.num_sampled_tokens,
            decision=decide(
                self._branching,
                trajectory_id=made.trajectory_id,
                call_index=made.call_index,
                tool_entropy_nats=made.tool_entropy_nats,
                baseline_entropy_nats=made.prefix.baseline_entropy_nats,
            ),
        )

    # -- the record ---------------------------------------------------------------------------

    def trajectories(self) -> list[Trajectory]:
        """All of them with their fork decisions, in an order that timing has no part in."""
        drawn = {(point.trajectory_id, point.call_index) for point in self._drawn}
        recorded: dict[str, Trajectory] = {}
        for trajectory_id in sorted(self._finished, key=lambda i: (i.count("/"), i)):
            trajectory = self._finished[trajectory_id]
            inherited: list[Turn] = []
            if trajectory.parent_id is not None:
                parent = recorded[trajectory.parent_id]
                inherited = parent.turns[: trajectory.forked_at_turn]
            own = [
                self._stamped(trajectory_id, turn, drawn)
                for turn in trajectory.turns[len(inherited) :]
            ]
            recorded[trajectory_id] = msgspec.structs.replace(trajectory, turns=inherited + own)
        return list(recorded.values())

    def _stamped(self, trajectory_id: str, turn: Turn, drawn: set[tuple[str, int]]) -> Turn:
        """The turn with what EVR decided at its call, if it looked there."""
        if turn.call is None:
            return turn
        key = (trajectory_id, turn.call.index)
        point = self._points.get(key)
        if point is None:
            return turn
        fork = msgspec.structs.replace(point.decision, branched=key in drawn)
        call = msgspec.structs.replace(turn.call, fork=fork)
        return msgspec.structs.replace(turn, call=call)
