"""The feedback on both kinds of database: numbered without gaps, whoever writes at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from services.clinic.address import DatabaseAddress
from services.clinic.feedback_store import FeedbackStore, StaleFeedback
from services.clinic.store import Answer, CaseStore, Repeatable
from shared.api.feedback import Feedback, ReviewerRole, Verdict
from tests.clinic.postgres import Postgres, wire_to
from tests.clinic.test_store import a_case

ANSWER = Answer(201, {}, "{}")


@pytest.fixture
def cases(database: DatabaseAddress) -> Iterator[CaseStore]:
    cases = CaseStore(database)
    yield cases
    cases.close()


@pytest.fixture
def store(cases: CaseStore) -> FeedbackStore:
    return FeedbackStore(cases)


def said(case_id: str, version: int, note: str | None = None) -> Feedback:
    return Feedback(
        case_id=case_id,
        version=version,
        given_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        verdict=Verdict.AGREE,
        role=ReviewerRole.OTHER,
        note=note,
    )


def test_versions_follow_each_other_without_a_gap(store: FeedbackStore):
    store.add(said("one", 1))
    store.add(said("one", 2, "again\0"))

    for version, newest in ((2, 2), (1, 2), (4, 2)):
        with pytest.raises(StaleFeedback) as stale:
            store.add(said("one", version))
        assert stale.value.newest == newest
    with pytest.raises(StaleFeedback):
        store.add(said("other", 2))

    assert store.versions("one") == [said("one", 1), said("one", 2, "again\0")]
    assert store.versions("other") == []


def test_of_writers_at_once_one_adds_each_version(store: FeedbackStore):
    def write(note: str) -> int:
        for version in range(1, 100):
            try:
                store.add(said("one", version, note))
            except StaleFeedback:
                continue
            return version
        raise AssertionError("every version was taken")

    with ThreadPoolExecutor(6) as threads:
        taken = sorted(threads.map(write, map(str, range(6))))

    assert taken == [1, 2, 3, 4, 5, 6]
    assert [version.version for version in store.versions("one")] == taken


def test_the_answer_is_kept_exactly_if_the_version_is(cases: CaseStore, store: FeedbackStore):
    first, second = Repeatable("1" * 64, "f", 5.0), Repeatable("2" * 64, "f", 5.0)

    store.add(said("one", 1), first, ANSWER)
    with pytest.raises(StaleFeedback):
        store.add(said("one", 3), second, ANSWER)

    kept = cases.kept("1" * 64, 0.0)
    assert kept is not None
    assert kept.answer == ANSWER
    assert cases.kept("2" * 64, 0.0) is None


def test_a_commit_whose_answer_is_lost_is_one_version(postgres: Postgres):
    with wire_to(postgres) as wire:
        cases = CaseStore(DatabaseAddress(wire.url(postgres.new_database())))
        store = FeedbackStore(cases)
        wire.breaks_after_commit = True

        store.add(said("one", 1))
        with pytest.raises(StaleFeedback):
            store.add(said("one", 1))

        assert wire.num_broken == 1
        assert store.versions("one") == [said("one", 1)]
        cases.close()


def test_the_newest_of_every_case_comes_in_the_order_of_the_cases(
    cases: CaseStore, store: FeedbackStore
):
    for name in ("c", "b", "a", "unsaid", "d", "e"):
        cases.create(a_case(name))
    for name in ("a", "b", "c", "d", "e"):
        store.add(said(name, 1))
    store.add(said("b", 2))

    newest = [(one.case.case_id, one.feedback.version) for one in store.newest_of_all(batch=2)]

    assert newest == [("c", 1), ("b", 2), ("a", 1), ("d", 1), ("e", 1)]
