"""Wire models of the clinic's jobs: many questions asked at once, each of which becomes a case.

A job is stored whole before any of it is worked on. Each of its items ends in exactly one case,
or says why it has none.
"""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from shared.api.base import SHA256_PATTERN, WireModel
from shared.api.clinic import RESEARCH_NOTICE, CaseStatus


class JobStatus(StrEnum):
    """Where a job stands; all but `running` are final."""

    RUNNING = "running"
    DONE = "done"
    """Every item has a case that was answered or abstained."""
    DONE_WITH_FAILURES = "done_with_failures"
    """Every item has ended, at least one of them in another way."""
    CANCELLED = "cancelled"
    """A caller took the job back; what had ended before stays."""


class ItemStatus(StrEnum):
    """Where an item stands; all but `queued` and `running` are final."""

    QUEUED = "queued"
    RUNNING = "running"
    """Its case is being worked on."""
    DONE = "done"
    """Its case was answered or abstained."""
    FAILED = "failed"
    """`failure` says why."""
    CANCELLED = "cancelled"


class JobItem(WireModel):
    """One question of a job."""

    number: int
    """From 1: the row of the questions, without its header, or the place of the image."""
    image_number: int
    """Which of the uploaded files, from 1; their names are not kept."""
    image_sha256: str = Field(pattern=SHA256_PATTERN)
    """Of the ingested original."""
    question: str
    status: ItemStatus
    case_id: str | None = None
    """Null as long as nobody works on it."""
    case_url: str | None = None
    case_status: CaseStatus | None = None
    failure: str | None = None
    """Why the item failed."""
    attempts: int
    """How often work on it began."""


class JobCounts(WireModel):
    """Items by status."""

    queued: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0


class JobSummary(WireModel):
    """A job as a line of a list."""

    job_id: str
    url: str
    status: JobStatus
    created_at: datetime
    """UTC."""
    finished_at: datetime | None = None
    num_items: int
    counts: JobCounts


class Job(JobSummary):
    """`GET /v1/jobs/{id}`: the job with a page of its items."""

    notice: str = RESEARCH_NOTICE
    items: list[JobItem]
    """In order of their numbers."""
    next_url: str | None = None
    """The next page of items; null on the last."""


class JobPage(WireModel):
    """`GET /v1/jobs`: newest first."""

    jobs: list[JobSummary]
    next_url: str | None = None
    """The next page; null on the last."""
