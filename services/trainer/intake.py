"""Which groups make a batch: validates, fates what cannot be trained, collects the rest.

In this order: a payload that does not validate, is of another run, was sampled by weights that this
run has not published or shows an image that is not in the blob store is *dead*; a group whose
oldest token is more than `max_off_policy_steps` behind is *stale*; a group of equal rewards has
*no_signal*. Each is closed at once and replaced by the next; the others are held until the
checkpoint that has them in its weights.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.trainer.delivery import Delivery, StopRequested
from services.trainer.images import ImageSource
from services.trainer.metrics import Recorder
from services.trainer.sample import ModelLimits, TrainingGroup, build_group
from services.trainer.settings import TrainerSettings
from shared.errors import BlobError, MedvrError, PayloadError
from shared.stream import Fate, StreamEntry
from shared.trajectory import TrajectoryGroup, decode_group

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Longest wait for groups before looking whether a stop was requested."""

REPORT_S = 30.0
"""Between two log lines while waiting."""

MAX_STALE_BATCHES = 10
"""So many batches of nothing but stale groups end the run: the rollouts do not follow."""


class StaleRunError(MedvrError):
    """Everything that arrives is stale."""


@dataclass
class Batch:
    """The groups of one optimizer batch, and what was consumed to find them."""

    step: int
    """Steps taken before it."""
    groups: list[TrainingGroup] = field(default_factory=list)
    consumed: list[TrajectoryGroup] = field(default_factory=list)
    """Trained and no-signal groups."""
    seconds_wait: float = 0.0


class Intake:
    """Turns the stream into batches."""

    def __init__(
        self,
        delivery: Delivery,
        images: ImageSource,
        limits: ModelLimits,
        settings: TrainerSettings,
        recorder: Recorder,
    ) -> None:
        self._delivery = delivery
        self._images = images
        self._limits = limits
        self._settings = settings
        self._recorder = recorder
        self._num_stale_in_a_row = 0

    def collect(self, step: int, should_stop: Callable[[], bool]) -> Batch:
        """Wait for `groups_per_step` groups with signal, in stream order.

        Raises `StopRequested`; what was collected stays on the stream. Raises `StaleRunError`.
        """
        batch = Batch(step=step)
        started = time.monotonic()
        reported = started
        while len(batch.groups) < self._settings.groups_per_step:
            missing = self._settings.groups_per_step - len(batch.groups)
            self._recorder.set_missing(missing)
            if should_stop():
                raise StopRequested
            entry = self._delivery.next_entry(POLL_S)
            if entry is not None:
                self._admit(entry, batch)
                continue
            self._recorder.set_queue(self._delivery.queue_figures())
            if time.monotonic() - reported >= REPORT_S:
                reported = time.monotonic()
                logger.info("waiting for groups", extra={"missing": missing, "step": step})
        self._recorder.set_missing(0)
        batch.seconds_wait = time.monotonic() - started
        return batch

    def _admit(self, entry: StreamEntry, batch: Batch) -> None:
        """Put one group into the batch, or give it its fate."""
        try:
            group = self._decode(entry)
            training_group = build_group(
                group, self._limits, divide=self._settings.divides_advantages
            )
            if group.newest_version > batch.step:
                raise PayloadError(
                    f"group {group.group_id} was sampled by version {group.newest_version}, this "
                    f"run is at step {batch.step}: these are not its weights"
                )
            staleness = batch.step - group.oldest_version
            self._recorder.observe_staleness(staleness)
            if staleness > self._settings.max_off_policy_steps:
                self._close(entry, Fate.STALE)
                self._count_stale(staleness)
                return
            self._num_stale_in_a_row = 0
            if training_group.has_signal:
                self._images.hold(span for s in training_group.samples for span in s.images)
        except (PayloadError, BlobError) as error:
            self._delivery.bury(entry, str(error))
            if entry.group_id:
                self._recorder.count_fate(Fate.DEAD)
            return
        batch.consumed.append(group)
        if not training_group.has_signal:
            self._close(entry, Fate.NO_SIGNAL)
            return
        self._delivery.hold(entry)
        batch.groups.append(training_group)

    def _decode(self, entry: StreamEntry) -> TrajectoryGroup:
        if not entry.group_id:
            raise PayloadError(f"entry {entry.entry_id} names no group_id")
        group = decode_group(entry.payload)
        if group.group_id != entry.group_id:
            raise PayloadError(f"entry {entry.group_id} carries group {group.group_id}")
        if group.run != self._settings.run:
            raise PayloadError(
                f"group {group.group_id} is of run {group.run}, this is run {self._settings.run}"
            )
        return group

    def _close(self, entry: StreamEntry, fate: Fate) -> None:
        self._delivery.close(entry, fate)
        self._recorder.count_fate(fate)

    def _count_stale(self, staleness: int) -> None:
        self._num_stale_in_a_row += 1
        if self._num_stale_in_a_row >= MAX_STALE_BATCHES * self._settings.groups_per_step:
            raise StaleRunError(
                f"{self._num_stale_in_a_row} groups in a row were stale (the last one by "
                f"{staleness} steps, accepted are {self._settings.max_off_policy_steps}): the "
                "policy replicas do not follow the weights channel, or max_outstanding is too high"
            )
