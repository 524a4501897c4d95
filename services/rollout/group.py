"""One problem → the trajectories of one group: bases and branches side by side.

A branch starts the moment its call is written: one that is drawn, and also one that would fill the
budget by what is known so far. What becomes known later may change either: an earlier draw (by
clock, see branching.py) may take the place of the last branch drawn, a draw or a call with a
higher entropy increase that of a filling branch. The one that is not wanted any more is then given
up and leaves nothing. So the group is the same whatever the timing, and replays from its record.
Every trajectory is a task of one `TaskGroup`: the first `BoundaryError` cancels the others and
leaves `roll_out` alone.
"""

import asyncio
import hashlib
from collections.abc import Callable

import msgspec

from services.rollout.branching import (
    Branch,
    BranchingArm,
    BranchingSettings,
    ForkPoint,
    decide,
    wanted_branches,
)
from shared.agent.environment import Policy, Zoom
from shared.agent.episode import CallMade, EpisodeSettings, OnCall, Prefix, run_episode
from shared.agent.opened import OpenedProblem
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
        await rollout.run()
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
        self._branches: dict[str, Branch] = {}
        """By id, those that are wanted by what is known: they run or have ended."""
        self._all_known = False
        """Whether every trajectory that can be branched from has ended."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._started_at: dict[str, int] = {}
        """Clock at which a trajectory began, minus the tokens it inherited."""
        self._finished: dict[str, Trajectory] = {}

    # -- which trajectories there are ---------------------------------------------------------

    async def run(self) -> None:
        """Run the bases, and the branches that their calls ask for, until all have ended."""
        async with asyncio.TaskGroup() as self._tasks:
            for trajectory_id in self._base_ids:
                self._start(trajectory_id, ForkOrigin.BASE)

    def _heard(self, made: CallMade) -> None:
        """A call of a base or of a drawn branch was written: others may branch there."""
        self._note(made)
        if not made.is_resampled:
            self._reconcile()

    def _reconcile(self) -> None:
        """Start the branches that are wanted now, give up those that no longer are."""
        branches = wanted_branches(
            self._points.values(), self._base_ids, self._budget, all_known=self._all_known
        )
        wanted = {branch.trajectory_id: branch for branch in branches}
        for trajectory_id in self._branches.keys() - wanted.keys():
            self._give_up(trajectory_id)
        for branch in branches:
            if branch.trajectory_id not in self._branches:
                self._branch(branch)
        self._branches = wanted

    def _open_to_branches(self) -> set[str]:
        """Bases and drawn branches: at their calls others are cut."""
        branches = self._branches.values()
        drawn = (b.trajectory_id for b in branches if b.origin is ForkOrigin.DRAWN)
        return {*self._base_ids, *drawn}

    def _give_up(self, trajectory_id: str) -> None:
        """Cancel a branch and forget it, with its calls; no branch that stays was cut from it."""
        self._running.pop(trajectory_id).cancel()
        self._finished.pop(trajectory_id, None)
        for key in [key for key in self._points if key[0] == trajectory_id]:
            del self._points[key], self._prefixes[key]
        if self._on_displaced is not None:
            self._on_displaced()

    def _settle_if_all_known(self) -> None:
        """Fill the budget when no further call can come, with bases if nobody called the tool."""
        if self._all_known or not self._open_to_branches() <= self._finished.keys():
            return
        self._all_known = True
        self._reconcile()
        num_missing = self._budget - len(self._branches)
        for index in range(num_missing):
            self._start(self._base_id(self._branching.num_base + index), ForkOrigin.FRESH)

    # -- trajectories -------------------------------------------------------------------------

    def _base_id(self, index: int) -> str:
        return f"{self._group_id}/b{index:02d}"

    def _branch(self, branch: Branch) -> None:
        point = branch.point
        prefix = self._prefixes[point.trajectory_id, point.call_index]
        inherited = sum(len(turn.generation.token_ids) for turn in prefix.turns)
        inherited += len(prefix.generation.token_ids)
        self._started_at[branch.trajectory_id] = point.clock - inherited
        self._start(branch.trajectory_id, branch.origin, prefix)

    def _start(self, trajectory_id: str, origin: ForkOrigin, prefix: Prefix | None = None) -> None:
        opens_others = origin in (ForkOrigin.BASE, ForkOrigin.DRAWN)
        on_call = self._heard if opens_others else self._note
        self._running[trajectory_id] = self._tasks.create_task(
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
        self._settle_if_all_known()

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
        drawn = {
            (branch.point.trajectory_id, branch.point.call_index)
            for branch in self._branches.values()
            if branch.origin is ForkOrigin.DRAWN
        }
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
