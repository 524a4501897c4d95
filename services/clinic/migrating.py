"""Bringing a database up by Alembic scripts, without an alembic.ini: the scripts ship in the wheel.

A folder of scripts holds `env.py`, which does nothing but call `run_scripts`, and `versions/`, one
file per revision. A revision that shipped is never changed: it must do to an old database what it
always did, so it imports nothing of this code. What tables.py says and what the scripts make are
the same; a test compares them.
"""

import logging
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from shared.errors import MedvrError

logger = logging.getLogger(__name__)


class UnusableDatabase(MedvrError):
    """The database cannot be used; the message says why."""


def upgrade(connection: Connection, scripts: Path) -> None:
    """Run the scripts that the database has not seen, in the transaction of the connection.

    Raises `UnusableDatabase` if it is at a revision that is not among them.
    """
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    newest = revisions[0]
    [revision] = MigrationContext.configure(connection).get_current_heads() or (None,)
    if revision == newest:
        return
    if revision is not None and revision not in revisions:
        raise UnusableDatabase(f"it is at revision {revision}; this program reads up to {newest}")
    command.upgrade(config, "head")
    logger.info("database brought up", extra={"from": revision, "to": newest})


def run_scripts() -> None:
    """What an `env.py` calls: run them on the connection that `upgrade` was given."""
    context.configure(connection=context.config.attributes["connection"])
    with context.begin_transaction():
        context.run_migrations()
