"""`medvr local demo`: phantoms, before, training, after, report, serving; each stage once.

The stages are written into a journal as they end; `--resume` does the ones that are missing. What
the demo makes lies in `.medvr/demo` (problem sets, evaluations, report) and under the names of its
runs in `.medvr/runs`, `.medvr/weights` and Valkey: that, and nothing else, is what `--fresh`
removes. Images are content-addressed blobs, shared with whatever else uses them, and stay.
"""

import dataclasses
from collections.abc import Callable, Iterator

import redis
from rich.console import Console

from services.local.channel import forget_channel, forget_run, point_channel, wait_for_version
from services.local.demo_folder import DemoFolder
from services.local.demo_report import (
    AFTER,
    BEFORE,
    DemoReport,
    comparison_rows,
    make_report,
    read_evaluation,
    table_rows,
    write_report,
)
from services.local.demo_settings import Arm, DemoPlan, quick
from services.local.greeting import greet, say_which_port
from services.local.journal import Journal, StageClock
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.settings import DemoSettings
from services.local.stack import Stack, initial_state, running_stack, sleep_until_interrupted
from services.local.state import StackError, StackFolder
from services.local.tables import rich_table
from services.local.training import Training, read_outcome
from shared.checkpoint import check_checkpoint
from shared.problem import read_manifest
from shared.weights import TRAIN_CHANNEL

_SWAP_TIMEOUT_S = 60.0

StageAction = Callable[[StageClock], object]


def plan_of(settings: DemoSettings) -> DemoPlan:
    """The plan that these flags ask for."""
    arms = tuple(Arm) if settings.arm == "both" else (Arm(settings.arm),)
    plan = dataclasses.replace(DemoPlan(), arms=arms, seed=settings.seed)
    if settings.quick:
        plan = quick(plan)
    if settings.steps is not None:
        trainer = dataclasses.replace(plan.trainer, max_steps=settings.steps)
        plan = dataclasses.replace(plan, trainer=trainer)
    return plan


class Demo:
    """One demo, from whatever stage it is at to the end."""

    def __init__(self, settings: DemoSettings, console: Console) -> None:
        if settings.fresh and settings.resume:
            raise StackError("--fresh starts over and --resume continues: give one of them")
        self.is_finished = False
        """Whether all stages are done: from then on it only serves."""
        self._settings = settings
        self._console = console
        self._plan = plan_of(settings)
        self._base = settings.model.resolve()
        check_checkpoint(self._base)
        self._stack_folder = StackFolder(settings.folder)
        paths = StackPaths(self._stack_folder.root)
        self._lines = CommandLines(paths, StackPorts.find(settings.clinic_port))
        self._folder = DemoFolder(paths, self._plan)

    def run(self) -> None:
        """All stages that are not done, then serve. Raises `StackError`."""
        state = initial_state("demo", self._lines)
        with running_stack(self._stack_folder, state, self._console) as stack:
            journal = self._open_journal()
            say_which_port(self._console, self._settings.clinic_port, self._lines.ports.clinic)
            stack.start(self._lines.valkey(self._settings.fsync))
            if not self._settings.resume:
                self._forget_in_valkey()
            self._start_services(stack, journal)
            for name, action in self._stages(stack):
                self._do(journal, name, action)
            self._report(journal)
            self.is_finished = True
            if self._settings.serve:
                self._serve(stack)

    # -- beginning ----------------------------------------------------------------------------

    def _open_journal(self) -> Journal:
        if self._settings.fresh:
            self._folder.remove()
        if not self._settings.resume:
            self._folder.refuse_leftovers()
        return Journal.open(self._folder.journal, self._plan, resume=self._settings.resume)

    def _forget_in_valkey(self) -> None:
        """A new demo begins: nothing of an earlier one may be delivered or served."""
        with redis.Redis.from_url(self._lines.redis_url) as client:
            for arm in Arm:
                forget_run(client, self._plan.run_of(arm))
            forget_channel(client, TRAIN_CHANNEL)

    def _start_services(self, stack: Stack, journal: Journal) -> None:
        """Start what all stages need; phantoms are rendered while vLLM starts."""
        zoom = self._lines.zoom()
        others = (
            self._lines.policy(
                self._base,
                channel=TRAIN_CHANNEL,
                max_num_seqs=self._plan.policy_max_num_seqs,
                threads=self._plan.policy_threads,
            ),
            self._lines.cca(),
            self._lines.clinic(),
            self._lines.clinic_worker(),
        )
        stack.launch(*others)
        stack.start(zoom)
        self._do(journal, "problems", lambda _: self._make_problems(stack))
        with journal.stage("starting the policy"):
            stack.wait_for(*others)

    def _do(self, journal: Journal, name: str, action: StageAction) -> None:
        """Do a stage unless it is done."""
        if journal.is_done(name):
            self._console.print(f"[dim]{name}: done before[/]")
            return
        self._console.rule(f"[bold]{name}", align="left")
        with journal.stage(name) as clock:
            action(clock)

    # -- stages -------------------------------------------------------------------------------

    def _stages(self, stack: Stack) -> Iterator[tuple[str, StageAction]]:
        """Name and action of every stage, in order."""
        for test_set in self._plan.test_sets:
            yield (
                f"{BEFORE} training: {test_set}",
                lambda _, t=test_set: self._evaluate(stack, BEFORE, t, None),
            )
        for arm in self._plan.arms:
            training = f"training: {arm.value}"
            yield training, lambda clock, a=arm: self._train(stack, a, clock)
            for test_set in self._plan.test_sets:
                yield (
                    f"{AFTER} training {arm.value}: {test_set}",
                    lambda _, t=test_set, a=arm: self._evaluate(stack, AFTER, t, a),
                )

    def _make_problems(self, stack: Stack) -> None:
        """Render the problem sets that are not there yet."""
        if missing := self._folder.missing_sets():
            job = self._lines.phantoms(
                missing,
                self._folder.problems,
                num_train=self._plan.num_train_problems,
                num_test=self._plan.num_test_problems,
            )
            stack.run_job(job)

    def _evaluate(self, stack: Stack, moment: str, test_set: str, arm: Arm | None) -> None:
        if arm is not None:
            self._serve_final_version(arm)
        job = self._lines.evaluation(
            self._plan,
            self._folder.test_set(test_set),
            label=moment if arm is None else f"{moment}-{arm.value}",
            out=self._folder.evaluation(moment, test_set, arm),
        )
        stack.run_job(job)

    def _train(self, stack: Stack, arm: Arm, clock: StageClock) -> None:
        training = Training(stack, self._lines, self._plan, arm, self._folder, self._base)
        training.run(clock)

    def _serve_final_version(self, arm: Arm) -> None:
        """Make the policy serve what an arm's training ended with, and wait until it does."""
        final = read_outcome(self._folder.outcome(arm)).final_version
        with redis.Redis.from_url(self._lines.redis_url) as client:
            point_channel(client, TRAIN_CHANNEL, final)
        wait_for_version(self._lines.policy_url, final.run, final.version, _SWAP_TIMEOUT_S)

    # -- ending -------------------------------------------------------------------------------

    def _report(self, journal: Journal) -> None:
        plan, folder = self._plan, self._folder
        evaluations = {
            (arm, test_set, moment): read_evaluation(
                folder.evaluation(moment, test_set, arm if moment == AFTER else None)
            )
            for arm in plan.arms
            for test_set in plan.test_sets
            for moment in (BEFORE, AFTER)
        }
        outcomes = {arm: read_outcome(folder.outcome(arm)) for arm in plan.arms}
        report = make_report(
            plan,
            evaluations,
            outcomes,
            stage_seconds=journal.stage_seconds(),
            set_seeds={f.name: read_manifest(f).seed for f in folder.problem_sets()},
        )
        write_report(folder.root, report)
        self._show(report)

    def _show(self, report: DemoReport) -> None:
        self._console.print(rich_table(table_rows(report, brief=True), "Held-out phantoms"))
        if len(report.training) > 1:
            self._console.print(rich_table(comparison_rows(report), "The two arms"))
        self._console.print(
            f"{report.steps} steps, {report.seconds / 60:.1f} minutes in all; "
            f"numbers, table and learning curves: {self._folder.root}",
            soft_wrap=True,
        )

    def _serve(self, stack: Stack) -> None:
        """Leave the clinic running with the trained policy until interrupted."""
        self._serve_final_version(self._plan.arms[0])
        in_domain = self._folder.test_set(self._plan.test_sets[0])
        greet(self._console, self._lines.clinic_url, self._lines.paths, in_domain)
        sleep_until_interrupted(stack)
