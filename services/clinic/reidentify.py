"""`medvr clinic reidentify <pseudonym> [options]`: whom a pseudonym of a case stands for.

For whoever may read the database of pseudonyms; it needs neither the cases nor a running clinic.
The identity goes to standard output alone.
"""

import sys
from collections.abc import Sequence

from services.clinic.settings import ClinicSettings

_USAGE = """usage: medvr clinic reidentify <pseudonym> [options]

Prints, as JSON, the identity that a pseudonym of a case was first given for.
The options are those of `medvr clinic`; of them, the databases' are looked at.
"""


def main(argv: Sequence[str]) -> None:
    """Look one up. Exits with 1 if there is none, with 2 if it is not asked for rightly."""
    if not argv or argv[0].startswith("-"):
        is_asked_for = bool(argv) and argv[0] in ("-h", "--help")
        (sys.stdout if is_asked_for else sys.stderr).write(_USAGE)
        raise SystemExit(0 if is_asked_for else 2)
    settings = ClinicSettings.load(argv[1:])
    from services.clinic.database import must_exist
    from services.clinic.pseudonyms import Pseudonyms
    from shared.service.process import plain_errors

    with plain_errors():  # also an unknown pseudonym
        must_exist(settings.pseudonyms)
        pseudonyms = Pseudonyms(settings.pseudonyms)
        try:
            identity = pseudonyms.identity(argv[0])
        finally:
            pseudonyms.close()
    sys.stdout.write(f"{identity.model_dump_json(indent=2)}\n")
