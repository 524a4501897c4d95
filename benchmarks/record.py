"""`python -m benchmarks.record`: records EVR groups of the tiny policy for `benchmarks.trainer`.

Real policy (vLLM on CPU), zoom and cca, and the function that makes groups in the rollout worker,
with the demo's numbers. Groups whose rewards are equal would be skipped by the trainer, so others
are made in their place.
"""

import argparse
import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.problems import ingest_problems
from benchmarks.recording import FOLDER as RECORDED
from benchmarks.recording import Recording
from benchmarks.services import FOLDER, TRAINED, benchmark_stack, policy_spec
from services.local.demo_settings import DemoPlan
from services.rollout.attempt import Services, make_group
from services.rollout.metrics import RolloutMetrics
from services.rollout.settings import RolloutSettings
from services.rollout.task import RolloutTask
from shared.blobs import BlobStore
from shared.progress import progress
from shared.trajectory import TrajectoryGroup, make_group_id

RUN = "recording"
_MOST_PER_GROUP = 8
"""Problems tried for each group that is wanted."""


async def make_groups(
    services: Services, settings: RolloutSettings, num_groups: int
) -> list[TrajectoryGroup]:
    """So many groups with rewards that differ. Exits if too many problems have none."""
    metrics = RolloutMetrics(CollectorRegistry())
    problems = await ingest_problems(services.zoom, _MOST_PER_GROUP * num_groups)
    groups: list[TrajectoryGroup] = []
    with progress(title="groups", total=num_groups) as bar:
        for position, problem in enumerate(problems):
            task = RolloutTask(
                group_id=make_group_id(RUN, 0, problem.problem_id),
                run=RUN,
                round=0,
                position=position,
                problem=problem,
            )
            group = await make_group(task, services, settings, metrics)
            if len({t.reward.total for t in group.trajectories if t.reward is not None}) > 1:
                groups.append(group)
                bar.update(1)
            if len(groups) == num_groups:
                return groups
    raise SystemExit(f"error: {len(problems)} problems gave only {len(groups)} groups with signal")


def run(args: argparse.Namespace, made_by: str) -> Recording:
    """Start the services, make the groups, stop them."""
    plan = DemoPlan().rollout
    with benchmark_stack("record", args.folder) as (stack, lines):
        stack.start(policy_spec(lines, args.model), lines.zoom(), lines.cca())
        settings = RolloutSettings(
            policy_url=lines.policy_url,
            zoom_url=lines.zoom_url,
            cca_url=lines.cca_url,
            group_size=args.group_size,
            max_turns=args.max_turns,
            max_turn_tokens=plan.max_turn_tokens,
            base_probability=plan.base_probability,
            entropy_gain=plan.entropy_gain,
        )

        async def all_groups() -> list[TrajectoryGroup]:
            services = Services.connect(settings)
            try:
                return await make_groups(services, settings, args.groups)
            finally:
                await services.aclose()

        groups = asyncio.run(all_groups())
        return Recording.of(groups, BlobStore(str(lines.paths.blobs)), made_by)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    plan = DemoPlan().rollout
    parser = argparse.ArgumentParser(prog="benchmarks.record", description=__doc__)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=plan.group_size)
    parser.add_argument("--max-turns", type=int, default=plan.max_turns)
    parser.add_argument("--model", type=Path, default=TRAINED, help="checkpoint to serve")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=RECORDED / "demo.zip")
    args = parser.parse_args(argv)
    names = ("groups", "group_size", "max_turns", "model")
    flags = {name: getattr(args, name) for name in names}
    if args.model == TRAINED:
        flags["model"] = None
    told = [
        part
        for name, value in flags.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    recording = run(args, shlex.join(["python", "-m", "benchmarks.record", *told]))
    recording.write(args.out)
    size_kib = args.out.stat().st_size / 1024
    print(f"{args.out}: {len(recording.groups)} groups, {size_kib:.0f} KiB")


if __name__ == "__main__":
    main()
