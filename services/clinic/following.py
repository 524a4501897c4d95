"""Following a case: its events as a stream (server-sent events), from any of them on.

A follower reads the database, never a queue: what it is sent is what is kept, so that nothing is
lost or repeated however often it comes back, and a slow one holds up nobody. The bell only says
when to look again. A stream ends after `done`, or after its time, and then the follower comes
back with the number of the last event it has.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager

from services.clinic.metrics import ClinicMetrics
from services.clinic.store import CaseStore, StoredEvent

LAST_EVENT = "done"
RECONNECT_MS = 1000
"""How long a follower that lost its stream waits before it comes back."""

_BATCH = 64


class Bells:
    """Wakes the followers of a case; used from one event loop."""

    def __init__(self, metrics: ClinicMetrics) -> None:
        self._metrics = metrics
        self._listening: dict[str, set[asyncio.Event]] = {}
        self.is_closed = False
        """Set by `close`: whoever listens shall go home."""

    @property
    def num_listening(self) -> int:
        """Followers of all cases."""
        return sum(len(bells) for bells in self._listening.values())

    @contextmanager
    def listening(self, case_id: str) -> Generator[asyncio.Event]:
        """An event that is set whenever the case has told something."""
        bell = asyncio.Event()
        self._listening.setdefault(case_id, set()).add(bell)
        self._metrics.event_streams.set(self.num_listening)
        try:
            yield bell
        finally:
            self._listening[case_id].discard(bell)
            if not self._listening[case_id]:
                del self._listening[case_id]
            self._metrics.event_streams.set(self.num_listening)

    def ring(self, case_id: str) -> None:
        """The case has told something."""
        for bell in self._listening.get(case_id, ()):
            bell.set()

    def close(self) -> None:
        """End every stream: the process stops, and followers come back to the next one."""
        self.is_closed = True
        for case_id in self._listening:
            self.ring(case_id)


def frame(event: StoredEvent) -> str:
    """An event as it is sent; JSON has no line breaks."""
    return f"id: {event.number}\nevent: {event.name}\ndata: {event.document}\n\n"


async def follow(
    store: CaseStore,
    bells: Bells,
    case_id: str,
    after: int,
    *,
    present: Callable[[StoredEvent], StoredEvent],
    heartbeat_s: float,
    stream_s: float,
) -> AsyncGenerator[str, None]:
    """The stream of a case's events after event number `after`, each as `present` makes it."""
    end_at = time.monotonic() + stream_s
    with bells.listening(case_id) as bell:
        yield f"retry: {RECONNECT_MS}\n\n"
        while time.monotonic() < end_at and not bells.is_closed:
            bell.clear()  # before looking, so that what is told while looking rings again
            events = await asyncio.to_thread(store.events_after, case_id, after, _BATCH)
            for event in events:
                yield frame(present(event))
                after = event.number
                if event.name == LAST_EVENT:
                    return
            if events:
                continue
            try:
                async with asyncio.timeout(min(heartbeat_s, end_at - time.monotonic())):
                    await bell.wait()
            except TimeoutError:
                yield ": running\n\n"
