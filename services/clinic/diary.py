"""What an attempt tells, on its way into the database: work does not wait for it.

Events are written in the order they were told, by one writer at a time, so that those told while
it writes go together. Followers are called once they are written. What is not written when the
process is killed is lost, and the case begun again: it then tells anew. The last ones are written
with the end of the case, in one transaction.
"""

import asyncio
from collections.abc import Sequence

from services.clinic.following import Bells
from services.clinic.metrics import ClinicMetrics
from services.clinic.store import CaseStore
from shared.api.case_events import CaseEvent


class Diary:
    """The events of one attempt at a case."""

    def __init__(
        self, store: CaseStore, bells: Bells, metrics: ClinicMetrics, case_id: str, attempt: int
    ) -> None:
        self._store = store
        self._bells = bells
        self._metrics = metrics
        self._case_id = case_id
        self._attempt = attempt
        self._waiting: list[CaseEvent] = []
        self._writer: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def tell(self, events: Sequence[CaseEvent]) -> None:
        """Take events in. Raises what the writing of earlier ones failed with: they are void."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._waiting.clear()
            raise failure
        self._waiting.extend(events)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> list[CaseEvent]:
        """Wait for the writer; returns what it did not write, to be written with the case's end."""
        if self._writer is not None:
            left, self._waiting = self._waiting, []
            await self._writer
            self._waiting += left
        return self._waiting

    async def _write(self) -> None:
        while self._waiting and self._failure is None:
            events, self._waiting = self._waiting, []
            try:
                is_told = await asyncio.to_thread(
                    self._store.tell, self._case_id, self._attempt, events
                )
            except Exception as failure:  # noqa: BLE001 - the next event is told of it
                self._waiting = [*events, *self._waiting]
                self._failure = failure
            else:
                if is_told:
                    self.count(events)
                    self._bells.ring(self._case_id)

    def count(self, events: Sequence[CaseEvent]) -> None:
        """Count events that are written."""
        for event in events:
            self._metrics.events.labels(event.event).inc()
