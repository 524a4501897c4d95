"""`python -m benchmarks.loop`: trajectories per minute of the whole embedded stack.

The demo's own processes with the demo's own plan train for a few steps: Valkey, policy, zoom, cca,
feeder, rollout worker, trainer. The figure counts the trajectories that the trainer took in between
two steps, by the clock on the wall. Beside it stands the rate that the policy's engine and the
trainer would reach if nothing else ran and the processors were never idle, from their processor
time in the same minutes: what is missing from it is what the rest of the system costs.
"""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.cpu import (
    descendants_cpu_seconds,
    machine_busy_seconds,
    num_processors,
    own_cpu_seconds,
)
from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.services import CHECKPOINT, FOLDER, benchmark_stack
from services.local.demo_settings import Arm, DemoPlan
from services.local.processes import CommandLines
from services.local.stack import Stack, describe_end
from services.local.supervisor import ChildState
from services.trainer.record import StepRecord
from shared.progress import progress
from shared.weights import TRAIN_CHANNEL

ARM = Arm.MEDVR
SHARE_AIM = ">= 0.9"
_LOOK_S = 0.2
_PHASES = ("wait", "prepare", "forward_backward", "optimizer", "checkpoint", "publish")
_COMPUTE = ("policy: engine", "trainer")
"""Whose time is worth it: the model's own arithmetic."""


@dataclass(frozen=True)
class Moment:
    """The machine right after a step."""

    step: StepRecord
    cpu_s: Mapping[str, float]
    """By process."""
    busy_s: float
    """Of all processors, by whomever."""


class Loop:
    """A training run and what its processes have used."""

    def __init__(self, stack: Stack, lines: CommandLines, plan: DemoPlan) -> None:
        self._stack = stack
        self._steps_file = lines.paths.runs / plan.run_of(ARM) / "steps.jsonl"

    def steps(self) -> list[StepRecord]:
        """Steps on record."""
        if not self._steps_file.is_file():
            return []
        text = self._steps_file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        return [msgspec.json.decode(line, type=StepRecord) for line in whole.splitlines()]

    def moment_of(self, number: int, seen: Callable[[int], object]) -> Moment:
        """Wait until a step is on record. Exits if the trainer or the worker ends before it is."""
        while len(steps := self.steps()) < number:
            seen(len(steps))
            for child in self._stack.supervisor.children():
                if child.state is ChildState.FAILED or child.num_restarts:
                    raise SystemExit(f"error: {describe_end(child)}")
            time.sleep(_LOOK_S)
        seen(number)
        return Moment(steps[number - 1], self._cpu_s(), machine_busy_seconds())

    def _cpu_s(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for child in self._stack.supervisor.children():
            if child.state is not ChildState.RUNNING:
                continue
            own, descendants = own_cpu_seconds(child.pid), descendants_cpu_seconds(child.pid)
            if child.name == "policy":  # the engine is a process of its own
                seconds |= {"policy: engine": descendants, "policy: server": own}
            else:
                seconds[child.name] = own + descendants
        return seconds


def plan_of(args: argparse.Namespace) -> DemoPlan:
    """The demo's plan, shortened."""
    plan = DemoPlan()
    num_steps = args.warm_up + args.steps
    return dataclasses.replace(
        plan,
        num_train_problems=args.problems,
        rollout=dataclasses.replace(
            plan.rollout, group_size=args.group_size, concurrency=args.concurrency
        ),
        trainer=dataclasses.replace(plan.trainer, max_steps=num_steps + 1),
    )


def start(stack: Stack, lines: CommandLines, plan: DemoPlan, model: Path) -> None:
    """Everything up to the first rollout; nothing of an earlier measurement is left."""
    problems = lines.paths.root / "problems"
    for folder in (lines.paths.valkey, lines.paths.runs, lines.paths.weights, problems):
        shutil.rmtree(folder, ignore_errors=True)
    policy = lines.policy(
        model,
        channel=TRAIN_CHANNEL,
        max_num_seqs=plan.policy_max_num_seqs,
        threads=plan.policy_threads,
    )
    stack.start(lines.valkey("everysec"))
    stack.launch(policy, lines.cca())
    stack.start(lines.zoom())
    num_train = plan.num_train_problems
    stack.run_job(lines.phantoms([plan.train_set], problems, num_train=num_train, num_test=1))
    stack.wait_for(policy)
    stack.start(
        lines.trainer(plan, ARM, model),
        lines.rollout(plan, ARM),
        lines.feeder(plan, ARM, problems / plan.train_set),
    )


def measure(loop: Loop, warm_up: int, num_steps: int) -> tuple[Moment, Moment, list[StepRecord]]:
    """The machine after the warm-up and at the end, and the steps in between."""
    with progress(title="training", total=warm_up + num_steps) as bar:

        def seen(number: int) -> None:
            bar.update(number - bar.n)

        first = loop.moment_of(warm_up, seen)
        last = loop.moment_of(warm_up + num_steps, seen)
    return first, last, loop.steps()[warm_up : warm_up + num_steps]


def _outcome(first: Moment, last: Moment, steps: Sequence[StepRecord], plan: DemoPlan) -> Outcome:
    seconds = last.step.time - first.step.time
    group_size = plan.rollout.group_size
    num_groups = sum(
        later - earlier
        for earlier, later in (
            (first.step.groups_trained, last.step.groups_trained),
            (first.step.groups_no_signal, last.step.groups_no_signal),
        )
    )
    num_trajectories = num_groups * group_size
    cpu_s = {name: last.cpu_s[name] - first.cpu_s[name] for name in last.cpu_s}
    compute_s, all_s = sum(cpu_s[name] for name in _COMPUTE), sum(cpu_s.values())
    available_s = num_processors() * seconds
    per_minute = 60 * num_trajectories / seconds
    return make_outcome(
        Figure("loop", per_minute, "trajectories per minute"),
        also=[
            Figure("loop, compute", compute_s / all_s, "of the stack's processor time", SHARE_AIM),
            Figure("loop, bound", compute_s / available_s, "x what the compute alone would allow"),
        ],
        detail={
            "trajectories": num_trajectories,
            "steps": len(steps),
            "seconds_per_step": seconds / len(steps),
            "bound_per_minute": per_minute * available_s / compute_s,
            "processors": num_processors(),
            "cpu_ms_per_trajectory": {
                name: 1e3 * s / num_trajectories
                for name, s in sorted(cpu_s.items(), key=lambda pair: -pair[1])
            },
            "processors_used": all_s / seconds,
            "processors_used_by_others": (last.busy_s - first.busy_s - all_s) / seconds,
            "trainer_seconds_per_step": {
                phase: sum(getattr(step, f"seconds_{phase}") for step in steps) / len(steps)
                for phase in _PHASES
            },
            "rollout_seconds_per_group": sum(s.rollout_seconds for s in steps) / len(steps),
            "groups_in_flight": plan.rollout.concurrency,
            "group_size": group_size,
            "groups_per_step": plan.trainer.groups_per_step,
        },
    )


def run(args: argparse.Namespace) -> Outcome:
    """Start the stack, train, measure, stop it."""
    plan = plan_of(args)
    with benchmark_stack("loop", args.folder) as (stack, lines):
        start(stack, lines, plan, args.model)
        first, last, steps = measure(Loop(stack, lines, plan), args.warm_up, args.steps)
    return _outcome(first, last, steps, plan)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    plan = DemoPlan()
    parser = argparse.ArgumentParser(prog="benchmarks.loop", description=__doc__)
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps that are measured")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--group-size", type=int, default=plan.rollout.group_size)
    parser.add_argument("--concurrency", type=int, default=plan.rollout.concurrency)
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint to start from")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print_outcome(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
