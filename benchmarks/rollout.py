"""`python -m benchmarks.rollout`: an EVR group of 16 beside 16 independent trajectories.

Real policy (vLLM on CPU), zoom and cca; groups are made by the same function as in the rollout
worker. Each group gets a problem nobody has seen, so no cache is warm, and the two kinds take
turns. Measured with one group at a time and with several in flight, as the worker has them.

Prefix tokens served from cache are vLLM's own count (`num_cached_tokens` of a branch's first
request) over all tokens that the branch inherits: prompt, view, earlier turns and crops, and the
turn up to its first coordinate. vLLM can only serve whole blocks, and not the last token, so the
share of what it could have served is given beside it.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.cpu import cpu_seconds_of
from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, Spread, measure_pairs
from benchmarks.problems import ingest_problems
from benchmarks.services import CHECKPOINT, FOLDER, benchmark_stack, policy_spec
from services.policy.settings import PolicySettings
from services.rollout.attempt import Services, make_group
from services.rollout.metrics import RolloutMetrics
from services.rollout.settings import RolloutSettings
from services.rollout.task import RolloutTask
from shared.api.policy import GenerateRequest, GenerateResponse, TextSegment
from shared.clients.policy import PolicyClient
from shared.problem import Problem
from shared.trajectory import TrajectoryGroup, make_group_id

TIME_AIM = "<= 0.7"
CACHE_AIM = ">= 0.95"
RUN = "benchmark"


class CountingPolicy(PolicyClient):
    """A policy client that keeps what vLLM says about its prefix cache."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self.prompts: list[tuple[bool, int, int]] = []
        """Per request: whether it continues tokens only, its tokens, those served from cache."""

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Continue the segments by one turn."""
        response = await super().generate(request)
        tokens_only = not any(isinstance(s, TextSegment) for s in request.segments)
        num_tokens = sum(map(len, response.segment_token_ids))
        self.prompts.append((tokens_only, num_tokens, response.num_cached_tokens))
        return response


@dataclass
class Arm:
    """One kind of group, and what its groups were like."""

    settings: RolloutSettings
    groups: list[TrajectoryGroup] = field(default_factory=list[TrajectoryGroup])
    cpu_s: list[float] = field(default_factory=list[float])
    """Of policy, zoom and cca, for each measurement."""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.metrics = RolloutMetrics(self.registry)

    @property
    def num_displaced(self) -> float:
        """Branches that were begun and given up."""
        return self.registry.get_sample_value("medvr_rollout_displaced_branches_total") or 0.0


@dataclass
class CacheCount:
    """Tokens that branches inherited."""

    inherited: int = 0
    cached: int = 0
    servable: int = 0
    """In whole blocks without the last token: the most that vLLM can serve."""
    branches: int = 0

    def add(self, num_tokens: int, num_cached: int, block_size: int) -> None:
        """Count one branch's first request."""
        self.inherited += num_tokens
        self.cached += num_cached
        self.servable += (num_tokens - 1) // block_size * block_size
        self.branches += 1


class Measurement:
    """Groups of both kinds on running services."""

    def __init__(
        self, policy: CountingPolicy, services: Services, problems: list[Problem], pids: list[int]
    ) -> None:
        self._policy = policy
        self._services = services
        self._problems = iter(problems)
        self._pids = pids
        self._num_made = 0
        self.cache = CacheCount()

    async def make(self, arm: Arm, in_flight: int) -> float:
        """Seconds for so many groups at a time, each about a problem of its own."""
        tasks = [self._next_task() for _ in range(in_flight)]
        before_s, started = self._cpu_s(), time.perf_counter()
        groups = await asyncio.gather(
            *(make_group(task, self._services, arm.settings, arm.metrics) for task in tasks)
        )
        seconds = time.perf_counter() - started
        arm.cpu_s.append(self._cpu_s() - before_s)
        arm.groups += groups
        self._count_branches(max(sum(len(s.token_ids) for s in g.prompt) for g in groups))
        return seconds

    def _next_task(self) -> RolloutTask:
        problem = next(self._problems)
        self._num_made += 1
        return RolloutTask(
            group_id=make_group_id(RUN, 0, problem.problem_id),
            run=RUN,
            round=0,
            position=self._num_made,
            problem=problem,
        )

    def _cpu_s(self) -> float:
        return cpu_seconds_of(self._pids)

    def _count_branches(self, num_prompt_tokens: int) -> None:
        """A request of tokens alone that is longer than the prompt is the first of a branch."""
        block_size = PolicySettings.model_fields["block_size"].default
        for tokens_only, num_tokens, num_cached in self._policy.prompts:
            if tokens_only and num_tokens > num_prompt_tokens:
                self.cache.add(num_tokens, num_cached, block_size)
        self._policy.prompts.clear()


def arms_of(args: argparse.Namespace) -> tuple[Arm, Arm]:
    """EVR and independent trajectories, alike in everything else."""

    def settings(branching: str) -> RolloutSettings:
        return RolloutSettings(
            branching=branching,  # pyright: ignore[reportArgumentType]
            group_size=args.group_size,
            max_turns=args.max_turns,
            max_turn_tokens=args.max_turn_tokens,
        )

    return Arm(settings("evr")), Arm(settings("off"))


async def measure(
    policy: CountingPolicy, services: Services, pids: list[int], args: argparse.Namespace
) -> tuple[dict[int, Pairs], tuple[Arm, Arm], CacheCount]:
    """Pairs by number of groups in flight; the first pair of all only warms up."""
    num_groups = 2 * (sum(args.in_flight) * args.repeats + 1)
    problems = await ingest_problems(services.zoom, num_groups)
    measurement = Measurement(policy, services, problems, pids)
    warm_up = arms_of(args)
    for arm in warm_up:
        await measurement.make(arm, 1)
    measurement.cache = CacheCount()
    evr, independent = arms_of(args)
    pairs = {
        in_flight: await measure_pairs(
            lambda _, n=in_flight: measurement.make(evr, n),
            lambda _, n=in_flight: measurement.make(independent, n),
            repeats=args.repeats,
            title=f"{in_flight} in flight",
        )
        for in_flight in args.in_flight
    }
    return pairs, (evr, independent), measurement.cache


def describe_arm(arm: Arm) -> dict[str, float]:
    """Means over its trajectories; what a branch inherited was not sampled by it."""
    trajectories = [t for group in arm.groups for t in group.trajectories]
    sampled = 0
    for trajectory in trajectories:
        own = trajectory.turns[trajectory.forked_at_turn or 0 :]
        sampled += sum(len(turn.generation.token_ids) for turn in own)
        sampled -= trajectory.forked_at_token or 0
    num = len(trajectories)
    return {
        "groups": len(arm.groups),
        "branches_per_group": sum(t.parent_id is not None for t in trajectories) / len(arm.groups),
        "displaced_per_group": arm.num_displaced / len(arm.groups),
        "turns": sum(len(t.turns) for t in trajectories) / num,
        "tokens": sum(t.num_sampled_tokens for t in trajectories) / num,
        "tokens_sampled": sampled / num,
        "service_cpu_ms_per_trajectory": 1e3 * sum(arm.cpu_s) / num,
    }


def run(args: argparse.Namespace) -> Outcome:
    """Start the services, measure, stop them."""

    async def all_measurements() -> tuple[dict[int, Pairs], tuple[Arm, Arm], CacheCount]:
        connected = Services.connect(
            RolloutSettings(
                policy_url=lines.policy_url, zoom_url=lines.zoom_url, cca_url=lines.cca_url
            )
        )
        policy = CountingPolicy(lines.policy_url)
        services = Services(policy=policy, zoom=connected.zoom, cca=connected.cca)
        try:
            return await measure(policy, services, pids, args)
        finally:
            await connected.policy.aclose()
            await services.aclose()

    with benchmark_stack("rollout", args.folder) as (stack, lines):
        specs = (policy_spec(lines, args.model), lines.zoom(), lines.cca())
        stack.start(*specs)
        pids = [stack.supervisor.child(spec.name).pid for spec in specs]
        pairs, (evr, independent), cache = asyncio.run(all_measurements())
    return _outcome(args, pairs, evr, independent, cache)


def _outcome(
    args: argparse.Namespace, pairs: dict[int, Pairs], evr: Arm, independent: Arm, cache: CacheCount
) -> Outcome:
    first, *others = args.in_flight
    unit = "x time of independent ones"
    return make_outcome(
        Figure("rollout", pairs[first].ratio().median, unit, TIME_AIM),
        also=[
            *(
                Figure(f"rollout, {n} groups in flight", pairs[n].ratio().median, unit, TIME_AIM)
                for n in others
            ),
            Figure(
                "rollout by processor time of the services",
                Pairs(evr.cpu_s, independent.cpu_s).ratio().median,
                unit,
            ),
            Figure(
                "prefix tokens from cache",
                cache.cached / max(1, cache.inherited),
                "of what branches inherit",
                CACHE_AIM,
            ),
            Figure(
                "prefix tokens from cache, whole blocks",
                cache.cached / max(1, cache.servable),
                "of what vLLM can serve",
                CACHE_AIM,
            ),
        ],
        detail={
            "group_size": args.group_size,
            "in_flight": {
                str(n): {
                    "ratio": measured.ratio().as_list(),
                    "evr_s": Spread.of(measured.first).as_list(),
                    "independent_s": Spread.of(measured.second).as_list(),
                }
                for n, measured in pairs.items()
            },
            "evr": describe_arm(evr),
            "independent": describe_arm(independent),
            "cache": {
                "branches": cache.branches,
                "inherited_tokens": cache.inherited,
                "cached_tokens": cache.cached,
                "servable_tokens": cache.servable,
            },
            "repeats": args.repeats,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.rollout", description=__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="pairs per number in flight")
    parser.add_argument(
        "--in-flight",
        type=int,
        nargs="+",
        default=[1, 4],
        help="groups at a time; the first is judged",
    )
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--max-turns", type=int, default=3)
    parser.add_argument("--max-turn-tokens", type=int, default=96)
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint to serve")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print_outcome(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
