"""`medvr clinic`: serve the case API and its viewer."""

import sys
from collections.abc import Sequence

from services.clinic.settings import ClinicSettings


def main(argv: Sequence[str]) -> None:
    """Serve until a signal. Exits with 2 if the database cannot be used."""
    settings = ClinicSettings.load(argv)
    from services.clinic.app import create_app
    from services.clinic.store import CaseStore, CaseStoreError
    from shared.service.logs import configure_logs
    from shared.service.serve import serve

    try:
        CaseStore(settings.database).close()
    except CaseStoreError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    configure_logs("clinic", settings.log_level)
    serve(create_app(settings), settings.host, settings.port)


if __name__ == "__main__":
    main(sys.argv[1:])
