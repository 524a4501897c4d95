"""Feedback as it is kept: only added to, one version after the other.

A version is added by one statement that looks whether the one it replaces is still the newest;
of two writers at once the second meets the unique (case_id, version). The answer to a request
with an idempotency key is kept in the same transaction, so that its repetition is no second word.
"""

from collections.abc import Iterator

import msgspec
from sqlalchemy import func, insert, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.clinic.store import Answer, CaseStore, Repeatable
from services.clinic.tables import CaseRow, FeedbackRow
from shared.api.clinic import Case
from shared.api.feedback import Feedback
from shared.errors import MedvrError

_BATCH = 256


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
        newest = select(func.coalesce(func.max(FeedbackRow.version), 0)).where(
            FeedbackRow.case_id == feedback.case_id
        )
        row = select(
            literal(feedback.case_id),
            literal(feedback.version),
            literal(feedback.model_dump_json()),
        ).where(newest.scalar_subquery() == feedback.version - 1)
        columns = ["case_id", "version", "document"]
        statement = insert(FeedbackRow).from_select(columns, row).returning(FeedbackRow.version)
        try:
            with Session(self._cases.engine) as session, session.begin():
                added = session.execute(statement).scalar_one_or_none()
                if added is not None and request is not None and answer is not None:
                    self._cases.keep_in(session, request, answer)
        except IntegrityError:
            added = None
        if added is None:
            with Session(self._cases.engine) as session:
                raise StaleFeedback(session.execute(newest).scalar_one())

    def versions(self, case_id: str) -> list[Feedback]:
        """Every version of a case's feedback, oldest first."""
        statement = (
            select(FeedbackRow.document)
            .where(FeedbackRow.case_id == case_id)
            .order_by(FeedbackRow.version)
        )
        with Session(self._cases.engine) as session:
            documents = session.execute(statement).scalars().all()
        return [Feedback.model_validate_json(document) for document in documents]

    def newest_of_all(self) -> Iterator[ReviewedCase]:
        """Every case that has feedback, with the newest, in the order the cases were asked."""
        newest = (
            select(FeedbackRow.case_id, func.max(FeedbackRow.version).label("version"))
            .group_by(FeedbackRow.case_id)
            .subquery()
        )
        statement = (
            select(CaseRow.document, FeedbackRow.document)
            .join(FeedbackRow, FeedbackRow.case_id == CaseRow.case_id)
            .join(
                newest,
                (newest.c.case_id == FeedbackRow.case_id)
                & (newest.c.version == FeedbackRow.version),
            )
            .order_by(CaseRow.number)
            .execution_options(yield_per=_BATCH)
        )
        with Session(self._cases.engine) as session:
            for case, feedback in session.execute(statement):
                yield ReviewedCase(
                    Case.model_validate_json(case), Feedback.model_validate_json(feedback)
                )
