"""Cases, their events, and the answers kept under idempotency keys.

SQLite files from before there were revisions are brought up by the same script: those of version
1 have only cases, and each one that ended is given its last events; those of version 2 have all.
"""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _make_cases() -> None:
    op.create_table(
        "cases",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("case_id", sa.String(), nullable=False, unique=True),
        sa.Column("status", sa.String(), nullable=False, index=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )


def _make_events() -> sa.Table:
    op.create_table(
        "kept_answers",
        sa.Column("key_sha256", sa.String(), primary_key=True),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("kept_at_s", sa.Double(), nullable=False, index=True),
        sa.Column("case_id", sa.String()),
        sa.Column("answer", sa.LargeBinary()),
    )
    return op.create_table(
        "events",
        sa.Column("row", sa.Integer(), primary_key=True),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("crop", sa.String()),
        sa.UniqueConstraint("case_id", "number"),
    )


def _last_events(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if case["status"] in ("answered", "abstained"):
        said = ("answer", "option_text", "abstention", "agreement")
        yield {"event": "answer", **{name: case.get(name) for name in said}}
    elif case.get("failure") is not None:
        failure = case["failure"]
        yield {"event": "error", "service": failure["service"], "reason": failure["reason"]}
    yield {"event": "done", "status": case["status"]}


def _close(connection: sa.Connection, cases: sa.Table, events: sa.Table) -> None:
    ended = sa.select(cases.c.document).where(cases.c.status != "running")
    for document in connection.execute(ended).scalars().all():
        case = json.loads(document)
        for number, told in enumerate(_last_events(case), start=1):
            text = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
            row = {"case_id": case["case_id"], "number": number, "name": told["event"]}
            connection.execute(events.insert().values(**row, document=text))


def upgrade() -> None:
    """Make what is not there."""
    connection = op.get_bind()
    there = sa.inspect(connection).get_table_names()
    if "cases" not in there:
        _make_cases()
    if "events" not in there:
        events = _make_events()
        _close(connection, sa.Table("cases", sa.MetaData(), autoload_with=connection), events)
