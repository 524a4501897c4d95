"""Feedback as it is kept: only added to, one version after the other.

A version is written first and then looked at: if there is one of its number already, or none
before it, its author did not know the newest, and nothing is kept. The answer to a request with an
idempotency key is kept in the same transaction, so that its repetition is no second word.
"""

from collections.abc import Iterator

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.clinic.store import Answer, CaseStore, Repeatable
from services.clinic.tables import CaseRow, FeedbackRow
from shared.api.clinic import Case
from shared.api.feedback import Feedback
from shared.errors import MedvrError


class StaleFeedback(MedvrError):
    """Another version came since the one that was to be replaced, or that one never was."""

    def __init__(self, newest: int) -> None:
        super().__init__(f"the newest feedback is version {newest}")
        self.newest = newest


class ReviewedCase(msgspec.Struct, frozen=True):
    """A case and the feedback that counts."""

    case: Case
    feedback: Feedback


class FeedbackStore:
    """The feedback in a clinic's database; safe to use from several threads."""

    def __init__(self, cases: CaseStore) -> None:
        self._cases = cases

    def add(
        self, feedback: Feedback, request: Repeatable | None = None, answer: Answer | None = None
    ) -> None:
        """Add the version after the newest, and the answer to its request; durable on return.

        Raises `StaleFeedback` if the newest is not the one before it.
        """
        document = feedback.model_dump_json()
        was_tried = False

        def work(session: Session) -> None:
            nonlocal was_tried
            is_repeated, was_tried = was_tried, True
            if not self._added(session, feedback, document):
                kept = select(FeedbackRow.document).where(
                    FeedbackRow.case_id == feedback.case_id,
                    FeedbackRow.version == feedback.version,
                )
                # A version that is there by the second try may have been written by the first.
                if not (is_repeated and session.execute(kept).scalar_one_or_none() == document):
                    raise StaleFeedback(self._newest(session, feedback.case_id))
            if request is not None and answer is not None:
                self._cases.keep_in(session, request, answer)

        self._cases.transactions.write(work)

    def _added(self, session: Session, feedback: Feedback, document: str) -> bool:
        """Write a version; False if there is one of its number. Raises `StaleFeedback` at a gap."""
        statement = self._cases.transactions.insert(
            FeedbackRow, case_id=feedback.case_id, version=feedback.version, document=document
        )
        statement = statement.on_conflict_do_nothing(index_elements=["case_id", "version"])
        added = session.execute(statement.returning(FeedbackRow.version)).scalar_one_or_none()
        before = self._newest(session, feedback.case_id, below=feedback.version)
        if before != feedback.version - 1:
            raise StaleFeedback(before)
        return added is not None

    def _newest(self, session: Session, case_id: str, below: int | None = None) -> int:
        statement = select(func.max(FeedbackRow.version)).where(FeedbackRow.case_id == case_id)
        if below is not None:
            statement = statement.where(FeedbackRow.version < below)
        return session.execute(statement).scalar_one() or 0

    def versions(self, case_id: str) -> list[Feedback]:
        """Every version of a case's feedback, oldest first."""
        statement = (
            select(FeedbackRow.document)
            .where(FeedbackRow.case_id == case_id)
            .order_by(FeedbackRow.version)
        )
        documents = self._cases.transactions.read(
            lambda session: session.execute(statement).scalars().all()
        )
        return [Feedback.model_validate_json(document) for document in documents]

    def newest_of_all(self, batch: int = 256) -> Iterator[ReviewedCase]:
        """Every case that has feedback, with the newest, in the order the cases were asked.

        At most `batch` of them are held at once.
        """
        after = 0
        while rows := self._newest_after(after, batch):
            for _, case, feedback in rows:
                yield ReviewedCase(
                    Case.model_validate_json(case), Feedback.model_validate_json(feedback)
                )
            after = rows[-1][0]

    def _newest_after(self, number: int, limit: int) -> list[tuple[int, str, str]]:
        """Of at most `limit` cases after one: number, document and newest feedback."""
        newest = (
            select(FeedbackRow.case_id, func.max(FeedbackRow.version).label("version"))
            .group_by(FeedbackRow.case_id)
            .subquery()
        )
        is_newest = (newest.c.case_id == FeedbackRow.case_id) & (
            newest.c.version == FeedbackRow.version
        )
        statement = (
            select(CaseRow.number, CaseRow.document, FeedbackRow.document)
            .join(FeedbackRow, FeedbackRow.case_id == CaseRow.case_id)
            .join(newest, is_newest)
            .where(CaseRow.number > number)
            .order_by(CaseRow.number)
            .limit(limit)
        )
        return self._cases.transactions.read(
            lambda session: [(row[0], row[1], row[2]) for row in session.execute(statement)]
        )
