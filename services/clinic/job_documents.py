"""What is kept of jobs and their items, and how they are read."""

from datetime import datetime

import msgspec

from shared.api.base import WireModel
from shared.api.clinic import Case, CaseStatus
from shared.api.jobs import ItemStatus, JobCounts, JobStatus
from shared.errors import MedvrError


class UnknownJob(MedvrError):
    """There is no job, or no item of a job, of this name."""


class ItemDocument(WireModel):
    """What is kept of an item beside its status."""

    image_number: int
    case: Case
    """As it will be begun."""
    failure: str | None = None


class JobDocument(WireModel):
    """What is kept of a job beside its status."""

    created_at: datetime
    finished_at: datetime | None = None


class StoredJob(msgspec.Struct, frozen=True):
    """A job with its items counted."""

    job_id: str
    status: JobStatus
    document: JobDocument
    counts: JobCounts


class StoredItem(msgspec.Struct, frozen=True):
    """An item, and where its case stands."""

    job_id: str
    number: int
    status: ItemStatus
    case_id: str | None
    case_status: CaseStatus | None
    attempts: int
    document: ItemDocument


class ItemName(msgspec.Struct, frozen=True, order=True):
    """Which item of which job."""

    job_id: str
    number: int
