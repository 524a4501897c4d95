"""The trainer, read aloud: collect a batch, step, record, save, settle, publish; at the end finish.

Order is the guarantee (docs/decisions/0009): a group leaves the stream only after a checkpoint
that has it in its weights is durable, and weights are published only after that. Killed anywhere,
a restarted trainer finds the newest checkpoint, its own pending entries and nothing half done.
"""

import logging
import threading
import time

from services.trainer.checkpoint import CheckpointStore, Progress
from services.trainer.delivery import Delivery, StopRequested
from services.trainer.images import ImageSource
from services.trainer.intake import Batch, Intake
from services.trainer.metrics import Recorder
from services.trainer.publish import Publisher
from services.trainer.record import StepRecord, describe_consumed, describe_trained, seconds_fields
from services.trainer.settings import TrainerSettings
from services.trainer.step import Learner, StepAbandoned, StepFigures
from shared.stream import Fate

logger = logging.getLogger(__name__)


class Trainer:
    """One training run from its newest checkpoint to `max_steps`, or until stopped."""

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        step: int,
        learner: Learner,
        images: ImageSource,
        intake: Intake,
        delivery: Delivery,
        checkpoints: CheckpointStore,
        publisher: Publisher,
        recorder: Recorder,
        stop: threading.Event,
    ) -> None:
        self.step = step
        self._settings = settings
        self._learner = learner
        self._images = images
        self._intake = intake
        self._delivery = delivery
        self._checkpoints = checkpoints
        self._publisher = publisher
        self._recorder = recorder
        self._stop = stop
        self._saved_step = step
        self._seconds = {"checkpoint": 0.0, "publish": 0.0}

    def run(self) -> None:
        """Train to the end; on a stop request save what was stepped and return."""
        try:
            self.open()
            while self.step < self._settings.max_steps:
                batch = self._intake.collect(self.step, self._stop.is_set)
                self.take_step(batch)
                if self._is_due(self._settings.checkpoint_every):
                    self.save()
                if self._is_due(self._settings.publish_every):
                    self.publish()
            self.finish()
        except (StopRequested, StepAbandoned):
            self.stop()
        finally:
            self._recorder.close()

    def open(self) -> None:
        """The run is open in Redis and its current version is published."""
        logger.info("run %s is at step %d", self._settings.run, self.step)
        self._delivery.open()
        self._delivery.snapshot()
        self.publish()

    def take_step(self, batch: Batch) -> None:
        """Update the weights and record what the batch was like."""
        groups = [group.samples for group in batch.groups]
        figures = self._learner.take_step(groups, self.step, self._stop.is_set)
        self.step += 1
        self._delivery.mark_trained([g.group.group_id for g in batch.groups])
        self._recorder.count_fate(Fate.TRAINED, len(batch.groups))
        self._images.forget()
        self._recorder.write(self._describe(batch, figures), batch.consumed)

    def save(self) -> None:
        """A durable checkpoint, and only then the fates of the groups in it."""
        started = time.perf_counter()
        fates, cursor = self._delivery.snapshot()
        progress = Progress(run=self._settings.run, step=self.step, cursor=cursor, fates=fates)
        self._checkpoints.save(progress, self._learner.state())
        self._saved_step = self.step
        self._seconds["checkpoint"] = time.perf_counter() - started
        self._delivery.settle_trained()

    def publish(self) -> None:
        """The current weights under the number of their step; a checkpoint holds them."""
        started = time.perf_counter()
        self._publisher.publish(self._learner.policy, self.step)
        self._delivery.announce()
        self._recorder.published_version.set(self.step)
        self._seconds["publish"] = time.perf_counter() - started

    def finish(self) -> None:
        """Close the run: what was not trained is surplus."""
        num_surplus = self._delivery.finish()
        self._recorder.count_fate(Fate.SURPLUS, num_surplus)
        logger.info("run finished", extra={"step": self.step, "surplus": num_surplus})

    def stop(self) -> None:
        """Asked to stop: keep the steps since the last checkpoint, leave the rest on the stream."""
        if self.step > self._saved_step:
            try:
                self.save()
            except StopRequested:
                logger.warning("redis is away: the steps after the last checkpoint are taken again")
        logger.info("stopped at step %d", self._saved_step)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._settings.max_steps

    def _describe(self, batch: Batch, figures: StepFigures) -> StepRecord:
        fates = self._delivery.num_by_fate()
        stream_length, outstanding = self._delivery.queue_figures()
        seconds = {"wait": batch.seconds_wait, **figures.seconds, **self._seconds}
        fields: dict[str, float] = {
            **describe_consumed(batch.consumed),
            **describe_trained(batch.groups, batch.step),
            **{f"groups_{fate.value}": fates[fate] for fate in Fate},
            **seconds_fields(seconds),
        }
        record = StepRecord(
            time=time.time(),
            step=self.step,
            zero_variance_share=1.0 - len(batch.groups) / len(batch.consumed),
            loss=figures.loss,
            kl_reference=figures.kl_reference,
            mismatch_kl=figures.mismatch_kl,
            logprob_difference=figures.logprob_difference,
            clip_fraction=figures.clip_fraction,
            is_cap_fraction=figures.is_cap_fraction,
            grad_norm=figures.grad_norm,
            lr=figures.lr,
            tokens_trained=figures.num_tokens_trained,
            trajectories_trained=figures.num_trajectories,
            stream_length=stream_length,
            outstanding=outstanding,
            **fields,  # pyright: ignore[reportArgumentType]
        )
        logger.info("step", extra={"step": self.step, "reward": round(record.reward, 4)})
        return record
