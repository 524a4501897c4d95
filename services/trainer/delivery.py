"""The trainer's end of the stream: every group exactly one fate, none trained twice.

`fates` holds every fate the trainer knows, in memory; `unsettled` the entries on the stream whose
group is collected or trained but not yet in a durable checkpoint. An entry leaves the stream only

- at once, if its group has a durable fate already, is stale, has no signal or does not validate
  (a letter keeps what does not; an entry without a group_id is nobody's and changes no fate);
- after the checkpoint that holds it, if it was trained (`settle_trained`).

Redis may be emptied at any time: the next read finds no consumer group, the run is opened again
from memory, and the feeder feeds the difference. A group that comes back that way while it is
collected or trained gets a second entry; both leave together.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import redis

from shared.stream import Fate, RunStream, StreamEntry

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_S = 1.0
"""Between two tries while Redis does not answer."""


class StopRequested(Exception):
    """The process was asked to stop while it waited for Redis."""


class Delivery:
    """Reads groups in stream order and closes them; survives a Redis that is away or emptied."""

    def __init__(
        self,
        stream: RunStream,
        *,
        fates: dict[str, Fate],
        cursor: int,
        stop: threading.Event,
        on_reopened: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._fates = dict(fates)
        self._cursor = cursor
        self._stop = stop
        self._on_reopened = on_reopened
        self._unsettled: dict[str, list[StreamEntry]] = {}
        self._ready: deque[StreamEntry] = deque()
        self._must_drain = True
        names = ("stream_length", "stream_lag", "oldest_group_seconds", "outstanding")
        self._queue_figures: dict[str, float] = dict.fromkeys(names, 0)

    # -- the run --------------------------------------------------------------------------------

    def open(self) -> None:
        """Make memory true in Redis: at start from the checkpoint, later after a loss.

        Of groups trained since the checkpoint Redis is told nothing: their weights are not durable.
        """
        durable = {
            group_id: fate
            for group_id, fate in self._fates.items()
            if fate is not Fate.TRAINED or group_id not in self._unsettled
        }
        self._patiently(lambda: self._stream.open(durable, self._cursor))
        self.announce()

    def announce(self) -> None:
        """Say again what Redis should know besides the run: the newest version, the bound."""
        self._patiently(self._on_reopened)

    def finish(self) -> int:
        """Close the run; returns how many groups were surplus."""
        while (num_surplus := self._patiently(self._stream.finish)) is None:
            logger.warning("redis was emptied: the run is opened again before it ends")
            self.open()
        return num_surplus

    def snapshot(self) -> tuple[dict[str, Fate], int]:
        """Fates and cursor for a checkpoint, those that others closed included."""
        theirs = self._patiently(self._stream.fates)
        self._cursor = max(self._cursor, self._patiently(self._stream.cursor))
        self._fates = {**theirs, **self._fates}
        return dict(self._fates), self._cursor

    def num_by_fate(self) -> Counter[Fate]:
        """Closed groups by fate, as far as the trainer knows."""
        return Counter(self._fates.values())

    def queue_figures(self) -> dict[str, float]:
        """How the queue stands, or stood if a stop is requested while Redis is away.

        Named as in `StepRecord`.
        """
        with suppress(StopRequested):
            self._queue_figures = {
                "stream_length": self._patiently(self._stream.length),
                "stream_lag": self._patiently(self._stream.lag),
                "oldest_group_seconds": self._patiently(self._stream.oldest_age_s),
                "outstanding": self._patiently(self._stream.outstanding),
            }
        return self._queue_figures

    # -- groups in ------------------------------------------------------------------------------

    def next_entry(self, wait_s: float) -> StreamEntry | None:
        """The next entry that is news, or None after `wait_s`; pending ones come first.

        An entry of a group with a durable fate is acknowledged and skipped on the way.
        """
        deadline = time.monotonic() + wait_s
        while True:
            if not self._ready:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._ready.extend(self._read(left_s))
                continue
            entry = self._ready.popleft()
            if not self._is_known(entry):
                return entry

    def _is_known(self, entry: StreamEntry) -> bool:
        if not entry.group_id:
            return False
        unsettled = self._unsettled.get(entry.group_id)
        if unsettled is not None:
            unsettled.append(entry)
            return True
        fate = self._fates.get(entry.group_id)
        if fate is None:
            return False
        logger.info("group was delivered again", extra={"fate": fate.value})
        self._patiently(lambda: self._stream.settle([(entry, fate)]))
        return True

    def _read(self, wait_s: float) -> list[StreamEntry]:
        """A few entries; re-opens the run if its consumer group is gone."""
        try:
            if self._must_drain:
                held = {e.entry_id for entries in self._unsettled.values() for e in entries}
                held.update(e.entry_id for e in self._ready)
                entries = [e for e in self._stream.read_pending() if e.entry_id not in held]
                self._must_drain = False
                return entries
            return self._stream.read_new(count=4, block_ms=max(1, int(wait_s * 1000)))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            logger.warning("redis does not answer: %s", error)
            self._must_drain = True  # what it read before it went away may be pending
            self._stop.wait(RETRY_S)
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            logger.warning("redis was emptied: the run is opened again from memory")
            self.open()
        return []

    # -- groups out -----------------------------------------------------------------------------

    def hold(self, entry: StreamEntry) -> None:
        """The group is collected: it stays on the stream until it is settled."""
        self._unsettled[entry.group_id] = [entry]

    def close(self, entry: StreamEntry, fate: Fate) -> None:
        """Fate a group that was not trained, at once."""
        self._fates[entry.group_id] = fate
        self._patiently(lambda: self._stream.settle([(entry, fate)]))

    def bury(self, entry: StreamEntry, reason: str) -> None:
        """Dead-letter an entry that cannot be trained."""
        if entry.group_id:
            self._fates[entry.group_id] = Fate.DEAD
        logger.warning("a group is dead: %s", reason)
        self._patiently(lambda: self._stream.bury(entry, reason))

    def mark_trained(self, group_ids: list[str]) -> None:
        """These groups are in the weights now; the next snapshot says so."""
        for group_id in group_ids:
            self._fates[group_id] = Fate.TRAINED

    def settle_trained(self, durable: Mapping[str, Fate]) -> None:
        """The checkpoint with these fates is durable: one MULTI for every group trained in it."""
        trained = [
            (entry, Fate.TRAINED)
            for group_id, entries in self._unsettled.items()
            if durable.get(group_id) is Fate.TRAINED
            for entry in entries
        ]
        self._patiently(lambda: self._stream.settle(trained))
        for entry, _ in trained:
            self._unsettled.pop(entry.group_id, None)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it, waiting for a Redis that is away; every action here may be done twice."""
        while True:
            try:
                return action()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                logger.warning("redis does not answer: %s", error)
                if self._stop.wait(RETRY_S):
                    raise StopRequested from error
