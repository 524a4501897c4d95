"""The case store: what is written stays, ends once, and survives a second opening."""

import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.clinic.store import CaseStore, UnknownCase
from services.clinic.tables import CaseStoreError
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
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "clinic.sqlite"


def finished(case: Case) -> Case:
    return case.model_copy(update={"status": CaseStatus.ANSWERED, "answer": "A"})


def test_a_case_is_read_back_by_a_later_process(path: Path):
    store = CaseStore(path)
    store.create(a_case("one"))
    store.close()

    again = CaseStore(path)

    assert again.get("one") == a_case("one")
    again.close()


def test_the_file_is_private_and_in_wal_mode(path: Path):
    store = CaseStore(path)
    store.create(a_case("one"))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    store.close()


def test_a_case_ends_once_and_the_first_end_stays(path: Path):
    store = CaseStore(path)
    store.create(a_case("one"))
    attempt = store.begin("one")

    assert store.finish(finished(a_case("one")), attempt)
    assert not store.finish(a_case("one", CaseStatus.FAILED), attempt)

    assert store.get("one").status is CaseStatus.ANSWERED
    assert store.unfinished() == []
    store.close()


def test_a_late_writer_of_an_older_attempt_changes_nothing(path: Path):
    store = CaseStore(path)
    store.create(a_case("one"))
    first = store.begin("one")
    second = store.begin("one")

    assert (first, second) == (1, 2)
    assert not store.finish(finished(a_case("one")), first)
    assert store.get("one").status is CaseStatus.RUNNING
    assert store.finish(finished(a_case("one")), second)
    store.close()


def test_unfinished_cases_come_oldest_first_with_their_attempts(path: Path):
    store = CaseStore(path)
    for case_id in ("old", "done", "new"):
        store.create(a_case(case_id))
    store.begin("old")
    store.finish(finished(a_case("done")), store.begin("done"))

    left = [(unfinished.case.case_id, unfinished.attempts) for unfinished in store.unfinished()]

    assert left == [("old", 1), ("new", 0)]
    store.close()


def test_a_released_attempt_does_not_count(path: Path):
    store = CaseStore(path)
    store.create(a_case("one"))

    store.release("one", store.begin("one"))

    assert [unfinished.attempts for unfinished in store.unfinished()] == [0]
    assert store.begin("one") == 1
    store.close()


def test_cases_are_paged_newest_first(path: Path):
    store = CaseStore(path)
    for index in range(5):
        store.create(a_case(f"case{index}"))

    first = [case.case_id for case in store.newest(2)]
    second = [case.case_id for case in store.newest(2, before=first[-1])]
    last = [case.case_id for case in store.newest(2, before=second[-1])]

    assert (first, second, last) == (["case4", "case3"], ["case2", "case1"], ["case0"])
    store.close()


def test_an_unknown_case_is_named(path: Path):
    store = CaseStore(path)
    for attempt in (lambda: store.get("gone"), lambda: store.newest(3, before="gone")):
        with pytest.raises(UnknownCase, match="no case gone"):
            attempt()
    with pytest.raises(UnknownCase, match="no running case gone"):
        store.begin("gone")
    store.close()


def test_a_database_of_another_version_is_refused(path: Path):
    CaseStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()

    with pytest.raises(CaseStoreError, match=r"version 99; this clinic reads 2"):
        CaseStore(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("this is not a database, however long it may be " * 20)

    with pytest.raises(CaseStoreError, match="is no SQLite database"):
        CaseStore(path)
    assert path.read_text().startswith("this is not a database")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path):
    with pytest.raises(CaseStoreError, match="cannot be opened"):
        CaseStore(tmp_path)


def test_a_database_from_before_there_were_events_is_brought_up(path: Path):
    store = CaseStore(path)
    for case_id in ("ended", "running"):
        store.create(a_case(case_id))
    store.finish(finished(a_case("ended")), store.begin("ended"))
    store.close()
    with sqlite3.connect(path) as connection:  # what version 1 had: the cases, and nothing else
        for table in ("events", "kept_answers"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version=1")
    connection.close()

    brought_up = CaseStore(path)

    assert brought_up.get("ended") == finished(a_case("ended"))
    told = brought_up.events_after("ended", 0, 10)
    assert [(event.number, event.name) for event in told] == [(1, "answer"), (2, "done")]
    assert brought_up.events_after("running", 0, 10) == []
    assert [left.case.case_id for left in brought_up.unfinished()] == ["running"]
    brought_up.close()
    CaseStore(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (2,)
    connection.close()


def test_only_the_attempt_that_began_last_tells(path: Path):
    store = CaseStore(path)
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
    store.close()
