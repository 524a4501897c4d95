"""The job store on both kinds of database: stored whole, each item ended once, done twice alike."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from services.clinic.address import DatabaseAddress
from services.clinic.job_documents import ItemDocument, ItemName, JobDocument, UnknownJob
from services.clinic.job_store import JobStore
from services.clinic.store import Answer, CaseStore, Repeatable
from shared.api.clinic import CaseFailure, CaseStatus
from shared.api.jobs import ItemStatus, JobStatus
from tests.clinic.test_store import a_case, finished

CREATED, LATER = (datetime(2026, 1, 2, hour, tzinfo=UTC) for hour in (3, 4))
ONE, TWO = ItemName("job", 1), ItemName("job", 2)


@pytest.fixture
def cases(database: DatabaseAddress) -> Iterator[CaseStore]:
    store = CaseStore(database)
    yield store
    store.close()


@pytest.fixture
def jobs(cases: CaseStore) -> JobStore:
    """With a job of two items."""
    store = JobStore(cases.transactions)
    create(store)
    return store


def create(store: JobStore, job_id: str = "job", **kept: object) -> None:
    items = [
        ItemDocument(image_number=number, case=a_case(f"{job_id}-{number}")) for number in (1, 2)
    ]
    store.create(job_id, JobDocument(created_at=CREATED), items, **kept)  # pyright: ignore


def begin(store: JobStore, name: ItemName) -> str:
    case = store.item(name).document.case
    store.take(name)
    store.begin(name, case)
    return case.case_id


def end(cases: CaseStore, case_id: str, status: CaseStatus = CaseStatus.ANSWERED) -> None:
    failure = CaseFailure(service="zoom", reason="gone") if status is CaseStatus.FAILED else None
    final = finished(a_case(case_id)).model_copy(update={"status": status, "failure": failure})
    assert cases.finish(final, cases.begin(case_id))


def test_a_job_is_stored_once_with_the_answer_to_its_request(cases: CaseStore):
    store = JobStore(cases.transactions)
    request, answer = Repeatable("k" * 64, "f" * 64, 5.0), Answer(202, {"location": "/"}, "{}")

    for _ in range(2):  # as after a commit that broke off
        create(store, kept=(request, answer))

    assert store.job("job").counts.queued == 2
    assert [item.number for item in store.items("job", 0, 10)] == [1, 2]
    kept = cases.kept(request.key_sha256, 0)
    assert kept is not None
    assert kept.answer == answer


def test_an_item_becomes_one_case_however_many_begin_it(jobs: JobStore, cases: CaseStore):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: begin(jobs, ONE), range(8)))

    item = jobs.item(ONE)
    assert (item.status, item.case_id, item.case_status) == ("running", "job-1", "running")
    assert [case.case_id for case in cases.newest(10)] == ["job-1"]
    assert jobs.waiting() == [TWO]
    assert jobs.take(ONE) is None


def test_a_job_ends_with_its_last_item(jobs: JobStore, cases: CaseStore):
    end(cases, begin(jobs, ONE), CaseStatus.ABSTAINED)
    assert jobs.settle(LATER) == []
    assert jobs.job("job").counts.model_dump() == {
        **dict.fromkeys(("running", "failed", "cancelled"), 0),
        **{"queued": 1, "done": 1},
    }
    end(cases, begin(jobs, TWO))

    [ended] = jobs.settle(LATER)

    assert (ended.status, ended.document.finished_at) == (JobStatus.DONE, LATER)
    assert jobs.settle(LATER) == [], "it ends once"
    assert jobs.job("job") == ended


def test_a_failed_item_keeps_its_reason_and_marks_the_job(jobs: JobStore, cases: CaseStore):
    end(cases, begin(jobs, ONE), CaseStatus.FAILED)
    jobs.fail(TWO, "clinic: never began")
    jobs.fail(ONE, "too late")

    [ended] = jobs.settle(LATER)

    assert (ended.status, ended.counts.failed) == (JobStatus.DONE_WITH_FAILURES, 2)
    reasons = [item.document.failure for item in jobs.items("job", 0, 9)]
    assert reasons == ["zoom: gone", "clinic: never began"]


def test_a_cancelled_job_drops_what_waits_and_says_what_still_runs(
    jobs: JobStore, cases: CaseStore
):
    case_id = begin(jobs, ONE)

    jobs.cancel("job", LATER)
    jobs.cancel("job", CREATED)

    assert jobs.job("job").document.finished_at == LATER
    assert jobs.item(TWO).status is ItemStatus.CANCELLED
    assert (jobs.take(TWO), jobs.waiting(), jobs.abandoned_cases()) == (None, [], [case_id])
    jobs.begin(TWO, a_case("job-2"))
    assert [case.case_id for case in cases.newest(10)] == [case_id]
    cases.cancel(a_case(case_id, CaseStatus.CANCELLED))
    assert jobs.settle(LATER) == []
    assert (jobs.job("job").status, jobs.job("job").counts.cancelled) == (JobStatus.CANCELLED, 2)
    assert jobs.abandoned_cases() == []


def test_a_case_that_was_cancelled_alone_is_no_success(jobs: JobStore, cases: CaseStore):
    end(cases, begin(jobs, ONE))
    cases.cancel(a_case(begin(jobs, TWO), CaseStatus.CANCELLED))

    [ended] = jobs.settle(LATER)

    assert ended.status is JobStatus.DONE_WITH_FAILURES


def test_what_is_not_there_is_named(jobs: JobStore):
    for ask in (
        lambda: jobs.job("gone"),
        lambda: jobs.newest(3, before="gone"),
        lambda: jobs.item(ItemName("gone", 1)),
    ):
        with pytest.raises(UnknownJob, match="gone"):
            ask()
    with pytest.raises(UnknownJob, match="no item 3 of a job job"):
        jobs.item(ItemName("job", 3))
    create(jobs, "newer")
    assert [job.job_id for job in jobs.newest(9)] == ["newer", "job"]
    assert [job.job_id for job in jobs.newest(9, before="newer")] == ["job"]


def test_two_follow_ups_at_a_time_are_both_named(cases: CaseStore):
    cases.create(a_case("first"))

    with ThreadPoolExecutor(4) as pool:
        names = [f"next-{number}" for number in range(8)]
        list(pool.map(lambda name: cases.create(a_case(name, follows="first")), names))

    assert sorted(cases.get("first").follow_ups) == names
    assert [case.case_id for case in cases.conversation("next-3")] == ["first", "next-3"]
