"""What Alembic runs to bring up a database of cases."""

from services.clinic.migrating import run_scripts

run_scripts()
