"""`medvr cca`: settings, imports, run."""

import sys
from collections.abc import Sequence

from services.cca.settings import CcaSettings


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    settings = CcaSettings.load(argv)

    from services.cca.app import create_app
    from shared.service.logs import configure_logs
    from shared.service.process import plain_errors
    from shared.service.serve import serve

    configure_logs("cca", settings.log_level)
    with plain_errors():
        serve(create_app(settings), settings.host, settings.port)


if __name__ == "__main__":
    main(sys.argv[1:])
