"""The training stage of a demo: trainer, feeder and worker, watched until the run is finished.

All three continue where they were: the trainer from its checkpoint, the feeder from its cursor in
Valkey, the worker with whatever is delivered again. So to resume is to start them again. A child
that keeps crashing without a step in between ends the stage with the end of its log.
"""

import json
import time
from collections import Counter
from pathlib import Path

import httpx
import msgspec
import redis

from services.local.channel import describe_policy, read_channel
from services.local.curves import draw_curves
from services.local.demo_folder import DemoFolder
from services.local.demo_report import TrainingOutcome
from services.local.demo_settings import Arm, DemoPlan
from services.local.journal import StageClock
from services.local.processes import CommandLines
from services.local.stack import Stack, describe_end
from services.local.state import StackError
from services.local.supervisor import ChildState
from services.local.training_display import Surroundings, TrainingDisplay
from services.local.training_log import TrainingLog, Truth, steps_until
from shared.stream import RunState, RunStream
from shared.weights import TRAIN_CHANNEL

HIT_RATE_GOAL = 0.6
_POLL_S = 1.0
_TICK_EVERY_S = 5.0
_MOST_CRASHES = 5
"""Restarts of one child without a step in between."""
_NAMES = ("feeder", "rollout", "trainer")


class Training:
    """One arm's training run."""

    def __init__(
        self,
        stack: Stack,
        lines: CommandLines,
        plan: DemoPlan,
        arm: Arm,
        folder: DemoFolder,
        checkpoint: Path,
    ) -> None:
        self._stack = stack
        self._lines = lines
        self._plan = plan
        self._arm = arm
        self._folder = folder
        self._run = plan.run_of(arm)
        self._trainer = lines.trainer(plan, arm, checkpoint)
        self._log = TrainingLog(folder.run_folder(arm), Truth(folder.train_set))
        self._crashes_at_step: dict[str, tuple[int, int]] = {}

    def run(self, clock: StageClock) -> TrainingOutcome:
        """Train to the end from the checkpoint, or from where it was. Raises `StackError`."""
        self._stack.note_run(self._run)
        others = (
            self._lines.rollout(self._plan, self._arm),
            self._lines.feeder(self._plan, self._arm, self._folder.train_set),
        )
        with redis.Redis.from_url(self._lines.redis_url) as client:
            stream = RunStream(client, self._run)
            self._stack.start(self._trainer, *others)
            self._watch(stream, clock)
            self._stack.stop(*_NAMES)
            outcome = self._outcome(client, stream, clock.tick())
        self._stack.note_run(None)
        self._folder.outcome(self._arm).write_bytes(msgspec.json.encode(outcome))
        draw_curves(self._folder.curves(self._arm), self._log, f"{self._arm.value} arm")
        return outcome

    # -- watching -----------------------------------------------------------------------------

    def _watch(self, stream: RunStream, clock: StageClock) -> None:
        """Show progress until the trainer has finished."""
        ticked = time.monotonic()
        elapsed_s = clock.tick()
        max_steps = self._plan.trainer.max_steps
        with TrainingDisplay(self._stack.console, f"training {self._run}", max_steps) as display:
            while True:
                is_finished = self._is_finished(stream)
                self._log.refresh()
                self._give_up_if_hopeless()
                display.show(self._log, self._surroundings(stream), elapsed_s)
                if is_finished:
                    return
                time.sleep(_POLL_S)
                if time.monotonic() - ticked > _TICK_EVERY_S:
                    ticked, elapsed_s = time.monotonic(), clock.tick()

    def _is_finished(self, stream: RunStream) -> bool:
        """Whether the trainer ended because the run did; one that was told to stop goes on."""
        if self._stack.supervisor.child("trainer").state is not ChildState.FINISHED:
            return False
        if stream.state() is RunState.FINISHED:
            return True
        self._stack.launch(self._trainer)
        return False

    def _surroundings(self, stream: RunStream) -> Surroundings:
        """What Valkey and the policy say; what does not answer is left at its default."""
        restarts = {c.name: c.num_restarts for c in self._stack.supervisor.children()}
        try:
            policy_version = str(describe_policy(self._lines.policy_url).version)
        except httpx.HTTPError:
            policy_version = "?"
        try:
            fates = Counter(fate.value for fate in stream.fates().values())
            return Surroundings(
                num_fed=stream.cursor(),
                stream_length=stream.length(),
                outstanding=stream.outstanding(),
                fates=fates,
                policy_version=policy_version,
                restarts=restarts,
            )
        except redis.ConnectionError:
            return Surroundings(policy_version=policy_version, restarts=restarts)

    def _give_up_if_hopeless(self) -> None:
        step = self._log.steps[-1] if self._log.steps else 0
        for name in _NAMES:
            child = self._stack.supervisor.child(name)
            at_step, crashes_then = self._crashes_at_step.get(name, (-1, 0))
            if at_step != step:
                self._crashes_at_step[name] = (step, child.num_restarts)
            elif child.num_restarts - crashes_then >= _MOST_CRASHES:
                raise StackError(f"no step between {_MOST_CRASHES} crashes: {describe_end(child)}")

    # -- the end ------------------------------------------------------------------------------

    def _outcome(self, client: redis.Redis, stream: RunStream, seconds: float) -> TrainingOutcome:
        final = read_channel(client, TRAIN_CHANNEL)
        if final is None or final.run != self._run:
            raise StackError(f"run {self._run} has finished but published no version")
        fates = Counter(fate.value for fate in stream.fates().values())
        return TrainingOutcome(
            run=self._run,
            steps=self._log.steps[-1],
            seconds=seconds,
            final_version=final,
            steps_until_hit_rate_60=steps_until(self._log.hit_rates(), HIT_RATE_GOAL),
            cursor=stream.cursor(),
            fates=dict(sorted(fates.items())),
        )


def read_outcome(path: Path) -> TrainingOutcome:
    """What a finished training came to. Raises `StackError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingOutcome)
    except (OSError, msgspec.MsgspecError, json.JSONDecodeError) as error:
        raise StackError(f"{path} is not the outcome of a training: {error}") from error
