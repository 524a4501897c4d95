"""Wire models of feedback: what a reviewer says of a case that ended.

Feedback is never changed, only followed by a later version: versions of a case are numbered 1, 2,
… without gaps, and the last one counts. Who writes says which version was the newest they saw, so
that nobody passes over another's word without having had the chance to read it.
"""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from shared.api.base import WireModel
from shared.api.zoom import WireBox

MAX_NOTE_CHARS = 2000


class Verdict(StrEnum):
    """What a reviewer says of a case's answer."""

    AGREE = "agree"
    """The answer is right."""
    DISAGREE = "disagree"
    """The answer is wrong; the right one is not given."""
    CORRECTED = "corrected"
    """The answer, the place or both are corrected; what is not corrected stands."""


class ReviewerRole(StrEnum):
    """Who speaks; nothing else is asked of a reviewer."""

    RADIOLOGIST = "radiologist"
    CLINICIAN = "clinician"
    RESEARCHER = "researcher"
    STUDENT = "student"
    OTHER = "other"


class FeedbackRequest(WireModel):
    """`POST /v1/cases/{id}/feedback`."""

    verdict: Verdict
    role: ReviewerRole
    corrected_answer: str | None = None
    """With `corrected`: the letter or the text of a choice, or the words of an open question."""
    corrected_box: WireBox | None = None
    """With `corrected`: where to look, in original pixels, half-open. For evaluation only."""
    note: str | None = Field(default=None, max_length=MAX_NOTE_CHARS)
    """Free text for people; it is kept with the case and goes nowhere else."""
    replaces: int = Field(default=0, ge=0, le=2**31 - 2)
    """The newest version its author knows of; 0 for none. A newer one there: 409."""


class Feedback(WireModel):
    """One version of the feedback on a case."""

    case_id: str
    version: int
    """From 1."""
    given_at: datetime
    """UTC."""
    verdict: Verdict
    role: ReviewerRole
    corrected_answer: str | None = None
    """The letter where there are choices."""
    corrected_box: WireBox | None = None
    note: str | None = None


class FeedbackHistory(WireModel):
    """`GET /v1/cases/{id}/feedback`: every version, oldest first; the last one counts."""

    case_id: str
    versions: list[Feedback]
