"""The trainer, read aloud: collect a batch, step, record, save; behind it settle and publish.

Order is the guarantee (docs/decisions/0009): a group leaves the stream only after a checkpoint
that has it in its weights is durable, and weights are announced only after that. Saving goes on
behind the next batch (`persistence`); between groups and between packs the loop attends to it.
Killed anywhere, a restarted trainer finds the newest checkpoint, its own pending entries and
nothing half done. This is the leader's loop; `follow` is that of other ranks.
"""

import logging
import threading
import time

from services.trainer.checkpoint import Progress
from services.trainer.delivery import Delivery, StopRequested
from services.trainer.figures import StepFigures
from services.trainer.images import ImageSource
from services.trainer.intake import Batch, Intake, StaleRunError
from services.trainer.metrics import Recorder
from services.trainer.persistence import Persistence
from services.trainer.publish import Publisher
from services.trainer.record import (
    StepRecord,
    describe_consumed,
    describe_trained,
    percentile_fields,
    seconds_fields,
)
from services.trainer.settings import TrainerSettings
from services.trainer.step import Learner, StepAbandoned
from shared.stream import Fate
from shared.weights import ChannelPointer

logger = logging.getLogger(__name__)


class Trainer:
    """One training run from its newest checkpoint to `max_steps`, or until stopped."""

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        progress: Progress,
        learner: Learner,
        images: ImageSource,
        intake: Intake,
        delivery: Delivery,
        persistence: Persistence,
        publisher: Publisher,
        recorder: Recorder,
        stop: threading.Event,
    ) -> None:
        self.step = progress.step
        self._trained = progress.trained
        self._settings = settings
        self._learner = learner
        self._images = images
        self._intake = intake
        self._delivery = delivery
        self._persistence = persistence
        self._publisher = publisher
        self._recorder = recorder
        self._stop = stop
        self._saved_step = self.step
        self._seconds = {"save": 0.0, "checkpoint": 0.0, "publish": 0.0}

    def run(self) -> None:
        """Train to the end; on a stop request save what was stepped and return.

        Raises `StaleRunError`, with that saved too.
        """
        try:
            self.open()
            while self.step < self._settings.max_steps:
                batch = self._intake.collect(self.step, self._attend)
                self.take_step(batch)
                if self._is_due(self._settings.checkpoint_every):
                    self.save()
            self.finish()
        except (StopRequested, StepAbandoned):
            self.stop()
        except StaleRunError:
            self.stop()
            raise
        finally:
            self._persistence.close()
            self._recorder.close()

    def open(self) -> None:
        """The run is open in Redis and its current version is published."""
        logger.info("run %s is at step %d", self._settings.run, self.step)
        self._delivery.open()
        self._delivery.snapshot()
        self._announce(self._persistence.publish_now(self.step))

    def take_step(self, batch: Batch) -> None:
        """Update the weights and record what the batch was like."""
        groups = [group.samples for group in batch.groups]
        figures = self._learner.take_step(groups, self.step, self._attend)
        self.step += 1
        self._delivery.mark_trained([g.group.group_id for g in batch.groups])
        self._recorder.count_fate(Fate.TRAINED, len(batch.groups))
        self._images.forget()
        self._recorder.write(self._describe(batch, figures), batch.consumed)

    def save(self) -> None:
        """Begin to make the step durable and, if it is due, public."""
        started = time.perf_counter()
        self._settle(wait=True)
        fates, cursor = self._delivery.snapshot()
        progress = Progress(
            run=self._settings.run,
            step=self.step,
            cursor=cursor,
            fates=fates,
            trained=self._trained,
        )
        self._persistence.begin(progress, publish=self._is_due(self._settings.publish_every))
        self._seconds["save"] = time.perf_counter() - started

    def finish(self) -> None:
        """Close the run: what was not trained is surplus."""
        self._settle(wait=True)
        num_surplus = self._delivery.finish()
        self._recorder.count_fate(Fate.SURPLUS, num_surplus)
        logger.info("run finished", extra={"step": self.step, "surplus": num_surplus})

    def stop(self) -> None:
        """Keep the steps since the last checkpoint, leave the rest on the stream."""
        try:
            self._settle(wait=True)
            if self.step > self._saved_step:
                self.save()
                self._settle(wait=True)
        except StopRequested:
            logger.warning("redis is away: what was not settled is settled by the next trainer")
        logger.info("stopped at step %d", self._saved_step)

    def _attend(self) -> bool:
        """Between two groups, and between two packs: is a step durable, is a stop requested?"""
        try:
            self._settle(wait=False)
        except StopRequested:
            return True
        return self._stop.is_set()

    def _settle(self, *, wait: bool) -> None:
        """Once a checkpoint is durable: the fates of the groups in it, then word of its version."""
        lasting = self._persistence.finished(wait=wait)
        if lasting is None:
            return
        self._saved_step = lasting.progress.step
        self._seconds["checkpoint"] = lasting.seconds_checkpoint
        self._seconds["publish"] = lasting.seconds_publish
        self._delivery.settle_trained(lasting.progress.fates)
        if lasting.published is not None:
            self._announce(lasting.published)

    def _announce(self, pointer: ChannelPointer) -> None:
        self._publisher.release(pointer, send=not self._stop.is_set())
        self._delivery.announce()
        self._recorder.published_version.set(pointer.version)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._settings.max_steps

    def _describe(self, batch: Batch, figures: StepFigures) -> StepRecord:
        fates = self._delivery.num_by_fate()
        seconds = {"wait": batch.seconds_wait, **figures.seconds, **self._seconds}
        fields: dict[str, float] = {
            **describe_consumed(batch.consumed),
            **describe_trained(batch.groups, batch.step),
            **self._delivery.queue_figures(),
            **percentile_fields("ratio", figures.ratio),
            **percentile_fields("mismatch_ratio", figures.mismatch),
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
            tokens_computed=figures.num_tokens_computed,
            tokens_saved=figures.num_tokens - figures.num_tokens_computed,
            trajectories_trained=figures.num_trajectories,
            **fields,  # pyright: ignore[reportArgumentType]
        )
        logger.info("step", extra={"step": self.step, "reward": round(record.reward, 4)})
        return record
