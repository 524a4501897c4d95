"""Events on their way into the database: numbered under the lock of their case, added once.

A transaction whose commit broke may have been done. These events remember from which number on they
were added then, and the next try finds them there.
"""

from collections.abc import Sequence

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from services.clinic.tables import EventRow
from shared.api.case_events import CaseEvent, ZoomEvent


class NewEvents:
    """The next events of a case; one object for all tries of a transaction."""

    def __init__(self, case_id: str, events: Sequence[CaseEvent]) -> None:
        self._case_id = case_id
        self._rows = [
            {
                "case_id": case_id,
                "name": told.event,
                "document": told.model_dump_json(),
                "crop": told.crop if isinstance(told, ZoomEvent) else None,
            }
            for told in events
        ]
        self._tried_from: int | None = None

    def were_added(self, session: Session) -> bool:
        """Whether an earlier try was done after all."""
        if self._tried_from is None:
            return False
        since = select(EventRow.document).where(
            EventRow.case_id == self._case_id, EventRow.number >= self._tried_from
        )
        told = set(session.execute(since).scalars())
        return all(row["document"] in told for row in self._rows)

    def add(self, session: Session) -> None:
        """Number and add them; the transaction must hold the lock of the case."""
        if not self._rows:
            return
        last = select(func.max(EventRow.number)).where(EventRow.case_id == self._case_id)
        first = (session.execute(last).scalar_one() or 0) + 1
        self._tried_from = first
        numbered = [{**row, "number": number} for number, row in enumerate(self._rows, start=first)]
        session.execute(insert(EventRow), numbered)
