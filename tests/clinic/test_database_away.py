"""A PostgreSQL server that breaks connections, restarts or stays away: no case is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, select

from services.clinic.address import DatabaseAddress
from services.clinic.store import Answer, CaseStore, Repeatable
from services.clinic.tables import CaseRow, open_tables
from services.clinic.transactions import DatabaseAway, Transactions
from shared.api.case_events import StartedEvent
from shared.api.clinic import CaseStatus
from tests.clinic.postgres import Postgres, Wire, wire_to
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask
from tests.clinic.test_store import a_case, finished


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    """The server, which runs again at the end."""
    yield postgres
    postgres.start()


@pytest.fixture
def wire(postgres: Postgres) -> Iterator[Wire]:
    with wire_to(postgres) as wire:
        yield wire


def test_what_is_told_while_connections_break_is_told_once(server: Postgres):
    store = CaseStore(DatabaseAddress(server.new_database()))
    store.create(a_case("one"))
    attempt = store.begin("one")

    for number in range(40):
        breaking = threading.Timer(0.002 * (number % 10), server.hang_up)  # before, in or after it
        breaking.start()
        assert store.tell("one", attempt, [StartedEvent(num_trajectories=number)])
        breaking.join()

    told = [StartedEvent.model_validate_json(e.document) for e in store.events_after("one", 0, 999)]
    assert [event.num_trajectories for event in told] == list(range(40))
    store.close()


def test_a_commit_whose_answer_is_lost_is_not_done_twice(postgres: Postgres, wire: Wire):
    store = CaseStore(DatabaseAddress(wire.url(postgres.new_database())))
    request = Repeatable("k" * 64, "f" * 64, asked_at_s=1.0)
    kept = Answer(201, {}, "{}")
    told = [StartedEvent(num_trajectories=1), StartedEvent(num_trajectories=2)]

    def breaking(write: Callable[[], Any]) -> Any:
        wire.breaks_after_commit = True
        return write()

    breaking(lambda: store.create(a_case("one"), request))
    attempt = store.begin("one")
    assert breaking(lambda: store.tell("one", attempt, told))
    assert store.tell("one", attempt, told)
    assert breaking(lambda: store.finish(finished(a_case("one")), attempt))
    assert not store.finish(finished(a_case("one")), attempt)
    breaking(lambda: store.keep(request, kept))
    store.create(a_case("two"))
    assert breaking(lambda: store.cancel(a_case("two", CaseStatus.CANCELLED)))

    assert wire.num_broken == 5
    events = store.events_after("one", 0, 99)
    assert [event.name for event in events] == ["started"] * 4 + ["answer", "done"]
    assert [event.name for event in store.events_after("two", 0, 99)] == ["done"]
    assert [case.case_id for case in store.newest(9)] == ["two", "one"]
    assert store.unfinished() == []
    store.close()


def test_a_server_that_stays_away_is_named_and_nothing_of_the_case(server: Postgres):
    database = DatabaseAddress(server.new_database())
    transactions = Transactions(open_tables(database), pauses_s=(0.01, 0.02))
    server.stop()

    with pytest.raises(DatabaseAway) as away:
        transactions.read(lambda session: session.execute(select(CaseRow)).all())

    assert away.value.is_transient
    assert str(away.value) == "clinic: the database does not answer"
    transactions.close()


def test_waiting_in_vain_for_a_connection_is_a_database_that_is_away(postgres: Postgres):
    url = DatabaseAddress(postgres.new_database()).url()
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    transactions = Transactions(engine, pauses_s=(0.01,))

    with engine.connect(), pytest.raises(DatabaseAway) as away:  # as if that one hung
        transactions.read(lambda session: session.execute(select(1)))

    assert away.value.is_transient
    assert transactions.read(lambda session: session.execute(select(1)).scalar_one()) == 1
    transactions.close()


def held_case(clinic: httpx.Client, policy: ScriptedPolicy) -> str:
    """The URL of a case whose policy was asked and has not answered."""
    policy.rehearse([answer("A")])
    policy.release.clear()
    response = ask(clinic, k="1", headers={"prefer": "wait=0"})
    assert response.status_code == 202
    assert policy.entered.wait(timeout=30)
    return response.headers["location"]


def ended(clinic: httpx.Client, location: str) -> dict[str, Any]:
    for _ in range(200):
        case: dict[str, Any] = clinic.get(location).json()
        if case["status"] != "running":
            return case
        time.sleep(0.05)
    pytest.fail("the case stayed running")


def test_a_case_outlives_a_restart_of_the_server(
    start_clinic: Callable[..., httpx.Client], policy: ScriptedPolicy, server: Postgres
):
    clinic = start_clinic(database=server.new_database())
    location = held_case(clinic, policy)

    server.stop()
    not_ready = clinic.get("/ready").json()
    policy.release.set()
    time.sleep(0.3)
    server.start()
    case = ended(clinic, location)

    assert not_ready["failures"]["database"] == "clinic: the database does not answer"
    assert (case["status"], case["answer"]) == ("answered", "A")
    assert policy.num_entered == 1, "nothing was done again"


def test_a_case_is_begun_again_by_the_next_clinic_if_the_server_stayed_away(
    start_clinic: Callable[..., httpx.Client],
    policy: ScriptedPolicy,
    server: Postgres,
    caplog: pytest.LogCaptureFixture,
):
    url = server.new_database()
    clinic = start_clinic(database=url)
    location = held_case(clinic, policy)

    server.stop()
    policy.release.set()
    refused = clinic.get(location)
    while "case not finished" not in caplog.text:
        time.sleep(0.05)
    server.start()
    left = clinic.get(location).json()
    case = ended(start_clinic(database=url), location)

    assert (refused.status_code, refused.json()["title"]) == (503, "A dependency failed")
    assert left["status"] == "running"
    assert (case["status"], case["answer"]) == ("answered", "A")
    assert policy.num_entered == 2
