"""The case store on both kinds of database: what is written stays, ends once, has no gaps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy.exc import IntegrityError

from services.clinic.address import DatabaseAddress
from services.clinic.store import Answer, CaseStore, Kept, Repeatable, UnknownCase
from shared.api.case_events import StartedEvent
from shared.api.clinic import Case, CaseImage, CaseSettings, CaseStatus


def a_case(case_id: str, status: CaseStatus = CaseStatus.RUNNING, **changes: object) -> Case:
    case = Case(
        case_id=case_id,
        status=status,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        question="What is it?",
        choices=["dot", "ring"],
        image=CaseImage(
            url=f"/v1/cases/{case_id}/image",
            sha256="a" * 64,
            width_px=40,
            height_px=30,
            source_format="png",
        ),
        settings=CaseSettings(num_trajectories=5, seed=3, temperature=1.0, max_turn_tokens=64),
    )
    return case.model_copy(update=changes)


@pytest.fixture
def store(database: DatabaseAddress) -> Iterator[CaseStore]:
    store = CaseStore(database)
    yield store
    store.close()


def finished(case: Case) -> Case:
    return case.model_copy(update={"status": CaseStatus.ANSWERED, "answer": "A"})


def test_a_case_is_read_back_by_a_later_process(database: DatabaseAddress):
    store = CaseStore(database)
    store.create(a_case("one"))
    store.close()

    again = CaseStore(database)

    assert again.get("one") == a_case("one")
    again.close()


def test_a_case_ends_once_and_the_first_end_stays(store: CaseStore):
    store.create(a_case("one"))
    attempt = store.begin("one")

    assert store.finish(finished(a_case("one")), attempt)
    assert not store.finish(a_case("one", CaseStatus.FAILED), attempt)

    assert store.get("one").status is CaseStatus.ANSWERED
    assert store.unfinished() == []


def test_a_late_writer_of_an_older_attempt_changes_nothing(store: CaseStore):
    store.create(a_case("one"))
    first = store.begin("one")
    second = store.begin("one")

    assert (first, second) == (1, 2)
    assert not store.finish(finished(a_case("one")), first)
    assert store.get("one").status is CaseStatus.RUNNING
    assert store.finish(finished(a_case("one")), second)


def test_unfinished_cases_come_oldest_first_with_their_attempts(store: CaseStore):
    for case_id in ("old", "done", "new"):
        store.create(a_case(case_id))
    store.begin("old")
    store.finish(finished(a_case("done")), store.begin("done"))

    left = [(unfinished.case.case_id, unfinished.attempts) for unfinished in store.unfinished()]

    assert left == [("old", 1), ("new", 0)]


def test_a_released_attempt_does_not_count(store: CaseStore):
    store.create(a_case("one"))

    store.release("one", store.begin("one"))

    assert [unfinished.attempts for unfinished in store.unfinished()] == [0]
    assert store.begin("one") == 1


def test_cases_are_paged_newest_first(store: CaseStore):
    for index in range(5):
        store.create(a_case(f"case{index}"))

    first = [case.case_id for case in store.newest(2)]
    second = [case.case_id for case in store.newest(2, before=first[-1])]
    last = [case.case_id for case in store.newest(2, before=second[-1])]

    assert (first, second, last) == (["case4", "case3"], ["case2", "case1"], ["case0"])


def test_an_unknown_case_is_named(store: CaseStore):
    for attempt in (lambda: store.get("gone"), lambda: store.newest(3, before="gone")):
        with pytest.raises(UnknownCase, match="no case gone"):
            attempt()
    with pytest.raises(UnknownCase, match="no running case gone"):
        store.begin("gone")


def test_only_the_attempt_that_began_last_tells(store: CaseStore):
    store.create(a_case("one"))
    first = store.begin("one")
    second = store.begin("one")
    events = [StartedEvent(num_trajectories=5), StartedEvent(num_trajectories=5)]

    assert not store.tell("one", first, events)
    assert store.tell("one", second, events)
    assert store.finish(finished(a_case("one")), second)
    assert not store.tell("one", second, events)

    told = [(event.number, event.name) for event in store.events_after("one", 0, 10)]
    assert told == [(1, "started"), (2, "started"), (3, "answer"), (4, "done")]


def test_a_case_is_made_once_per_id(store: CaseStore):
    store.create(a_case("one"))

    with pytest.raises(IntegrityError):
        store.create(a_case("one"))


def test_a_key_leads_to_its_case_then_to_its_answer_until_it_expires(store: CaseStore):
    request = Repeatable("k" * 64, "f" * 64, asked_at_s=1000.25)
    answer = Answer(201, {"location": "/v1/cases/one"}, '{"text": "µ∆"}')

    store.create(a_case("one"), request)
    before = store.kept(request.key_sha256, asked_after_s=0)
    store.keep(request, answer)
    store.keep(request, answer)
    after = store.kept(request.key_sha256, asked_after_s=1000.25)
    expired = store.kept(request.key_sha256, asked_after_s=1000.5)

    assert before == Kept("f" * 64, "one", None)
    assert after == Kept("f" * 64, "one", answer)
    assert expired is None
    assert store.kept(request.key_sha256, asked_after_s=0) is None


@pytest.mark.parametrize(
    "case_id", ["o\0ne", "\0", "one\ufffd", "'; DROP TABLE cases; --", "É" * 5000]
)
def test_no_text_that_is_asked_for_breaks_the_store(store: CaseStore, case_id: str):
    store.create(a_case("one"))

    for ask in (store.get, store.begin, lambda text: store.newest(1, before=text)):
        with pytest.raises(UnknownCase):
            ask(case_id)

    assert store.events_after(case_id, 0, 1) == []
    assert store.last_event(case_id) is None
    assert not store.has_told_crop("one", case_id)
    assert store.kept(case_id, 0) is None


def test_what_concurrent_writers_tell_is_numbered_without_gaps_and_ends_once(store: CaseStore):
    store.create(a_case("one"))
    attempt = store.begin("one")

    def tell(writer: int) -> int:
        told = [StartedEvent(num_trajectories=writer), StartedEvent(num_trajectories=writer)]
        return sum(store.tell("one", attempt, told) for _ in range(10))

    def end(status: CaseStatus) -> bool:
        case = a_case("one", status)
        return store.cancel(case) if status is CaseStatus.CANCELLED else store.finish(case, attempt)

    with ThreadPoolExecutor(8) as threads:
        written = sum(threads.map(tell, range(4)))
        late = [threads.submit(tell, writer) for writer in range(4)]
        ends = list(threads.map(end, [CaseStatus.CANCELLED, CaseStatus.FAILED] * 2))
        written += sum(future.result() for future in late)

    events = store.events_after("one", 0, 1000)
    assert sum(ends) == 1
    assert [event.number for event in events] == list(range(1, 2 * written + 2))
    assert [event.name for event in events] == ["started"] * 2 * written + ["done"]
    pairs = [event.document for event in events[:-1]]
    assert pairs[::2] == pairs[1::2], "what is told together stays together"


def test_concurrent_attempts_have_numbers_of_their_own(store: CaseStore):
    store.create(a_case("one"))

    with ThreadPoolExecutor(8) as threads:
        attempts = list(threads.map(store.begin, ["one"] * 16))

    assert sorted(attempts) == list(range(1, 17))
