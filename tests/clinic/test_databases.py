"""The clinic's database as it is opened: made, brought up, refused, by one process or several."""

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from services.clinic.address import DatabaseAddress
from services.clinic.database import open_database
from services.clinic.migrating import UnusableDatabase
from services.clinic.settings import ClinicSettings
from services.clinic.store import Answer, CaseStore, Kept
from services.clinic.tables import SCRIPTS, Base, open_tables
from services.clinic.telling import closing_events
from shared.api.clinic import AbstentionReason, CaseStatus
from tests.clinic.postgres import Postgres
from tests.clinic.test_store import a_case, finished

FILES = Path(__file__).parent / "databases"
"""As former clinics wrote them: version 1 had cases alone, version 2 events and kept answers."""


@pytest.fixture
def former(tmp_path: Path) -> Callable[[int], Path]:
    """A copy of a former clinic's file."""

    def copy(version: int) -> Path:
        return Path(shutil.copy(FILES / f"version{version}.sqlite", tmp_path / "clinic.sqlite"))

    return copy


def differences(address: DatabaseAddress) -> list[object]:
    """Between the tables that are there and those the code speaks of."""
    engine = open_tables(address)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        found = list(compare_metadata(context, Base.metadata))
    engine.dispose()
    return found


def test_the_scripts_make_the_tables_that_the_code_speaks_of(empty_database: DatabaseAddress):
    assert differences(empty_database) == []


@pytest.mark.parametrize("version", [1, 2])
def test_a_former_file_gets_the_same_tables(former: Callable[[int], Path], version: int):
    assert differences(DatabaseAddress.of(former(version))) == []


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_in_a_former_file_is_lost(former: Callable[[int], Path], version: int):
    store = CaseStore(DatabaseAddress.of(former(version)))

    for case_id in ("answered", "abstained", "failed"):
        case = store.get(case_id)
        assert case.status.value == case_id
        told = store.events_after(case_id, 0, 10)[version - 1 :]  # version 2 told `started` before
        last = closing_events(case)
        assert [event.name for event in told] == [event.event for event in last]
        for event, expected in zip(told, last, strict=True):
            assert type(expected).model_validate_json(event.document) == expected
    assert store.get("answered").question == "Was ist es? ∆"
    assert store.get("abstained").abstention is AbstentionReason.TIED
    [left] = store.unfinished()
    assert (left.case.case_id, left.attempts) == ("running", 1)
    assert store.events_after("running", 0, 10) == []
    assert store.finish(finished(left.case), store.begin("running"))
    if version == 2:
        assert store.get("cancelled").status is CaseStatus.CANCELLED
        assert store.kept("k" * 64, 0) == Kept("f" * 64, "cancelled", None)
        answer = Answer(201, {"location": "/v1/cases/answered"}, '{"a":1}')
        assert store.kept("l" * 64, 0) == Kept("g" * 64, None, answer)
    store.create(a_case("new"))
    assert store.newest(1)[0].case_id == "new"
    store.close()


def test_a_file_that_cannot_be_brought_up_stays_as_it_was(former: Callable[[int], Path]):
    path = former(1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE cases SET document = '{' WHERE case_id = 'failed'")
    connection.close()

    for _ in range(2):
        with pytest.raises(ValueError, match="Expecting property name"):
            CaseStore(DatabaseAddress.of(path))

    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    assert sorted(name for (name,) in names) == ["cases", "sqlite_sequence"]


def test_a_file_of_an_unknown_version_is_refused(former: Callable[[int], Path]):
    path = former(2)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()

    with pytest.raises(UnusableDatabase, match=r"version 99; this clinic reads up to 3"):
        CaseStore(DatabaseAddress.of(path))


def test_a_database_of_a_later_revision_is_refused(database: DatabaseAddress):
    engine = open_tables(database)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9001'")

    with pytest.raises(UnusableDatabase, match=r"revision 9001; this program reads up to 0002"):
        CaseStore(database)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
    engine.dispose()
    CaseStore(database).close()


def test_a_database_of_another_kind_is_brought_up_by_scripts_of_its_own(
    empty_database: DatabaseAddress, tmp_path: Path
):
    scripts = tmp_path / "100% scripts"
    (scripts / "versions").mkdir(parents=True)
    shutil.copy(SCRIPTS / "env.py", scripts)
    for number, statement in enumerate(["CREATE TABLE names (name TEXT)", "DROP TABLE names"]):
        (scripts / "versions" / f"{number}.py").write_text(
            "from alembic import op\n"
            f"revision, down_revision = '{number}', {str(number - 1) if number else None!r}\n"
            f"def upgrade(): op.execute('{statement}')\n"
        )
        engine = open_database(empty_database, scripts)
        with engine.connect() as connection:
            tables = inspect(connection).get_table_names()
        engine.dispose()
        assert sorted(tables) == [["alembic_version", "names"], ["alembic_version"]][number]


def test_processes_that_open_a_new_database_at_once_take_turns(empty_database: DatabaseAddress):
    program = (
        "import sys; from services.clinic.settings import ClinicSettings\n"
        "from services.clinic.store import CaseStore\n"
        "address = ClinicSettings().database\n"
        "print(flush=True); sys.stdin.readline(); CaseStore(address).close()"
    )
    path = empty_database.path
    text = str(path or empty_database.url().render_as_string(hide_password=False))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": ":".join(sys.path), "MEDVR_CLINIC_DATABASE": text},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [(process.communicate(timeout=60), process.returncode) for process in processes]

    assert [code for _, code in ended] == [0, 0, 0], ended
    assert differences(empty_database) == []


def test_the_file_is_private_and_in_wal_mode(tmp_path: Path):
    path = tmp_path / "sub" / "clinic.sqlite"
    store = CaseStore(DatabaseAddress.of(path))
    store.create(a_case("one"))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    connection.close()
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("this is not a database, however long it may be " * 20)

    with pytest.raises(UnusableDatabase, match="is no SQLite database"):
        CaseStore(DatabaseAddress.of(path))
    assert path.read_text().startswith("this is not a database")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path):
    with pytest.raises(UnusableDatabase, match="cannot be opened"):
        CaseStore(DatabaseAddress.of(tmp_path))


def test_a_postgresql_of_another_encoding_is_refused(postgres: Postgres):
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    url = postgres.new_database().replace("/clinic", "/latin?was=").partition("?was")[0]

    with pytest.raises(UnusableDatabase, match="its encoding is LATIN1; it must be UTF8"):
        CaseStore(DatabaseAddress(f"{url}?host={postgres.socket_folder}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a file's path or"),
        ("sqlite:///clinic.sqlite", "must be the path of an SQLite file, or a URL that starts"),
        ("mysql://a:pass-word@host/name", "starts with postgresql+psycopg://"),
        ("postgresql+psycopg://a:pass-word@host", "must have the form"),
        ("postgresql+psycopg://a:pass-word@host:port/name", "must have the form"),
        ("postgresql://host/name?user=a&password=pass-word", "password before the @"),
    ],
)
def test_a_wrong_address_is_refused_and_no_password_shown(
    text: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEDVR_CLINIC_DATABASE", text)

    with pytest.raises(SystemExit) as ended:
        ClinicSettings.load([])

    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in shown
    assert "MEDVR_CLINIC_DATABASE" in shown
    assert "pass-word" not in shown


def test_no_text_of_an_address_shows_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    url = "postgresql://clinic:pass%2Fword@127.0.0.1:1/cases?sslmode=disable"
    monkeypatch.setenv("MEDVR_CLINIC_DATABASE", url)
    settings = ClinicSettings.load([])

    shown = "postgresql+psycopg://clinic:***@127.0.0.1:1/cases?sslmode=disable"
    assert settings.database.url().password == "pass/word"
    assert str(settings.database) == shown
    assert "pass" not in repr(settings) + settings.model_dump_json()
    with pytest.raises(UnusableDatabase) as refused:
        CaseStore(settings.database)
    assert str(refused.value).startswith(f"{shown} cannot be used: connection failed")
    assert "pass" not in str(refused.value)
    with pytest.raises(SystemExit):
        ClinicSettings.load(["--help"])
    assert "pass%2Fword" not in capsys.readouterr().out
