"""`medvr zoom`: settings, imports, run."""

import sys
from collections.abc import Sequence

from services.zoom.settings import ZoomSettings


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    settings = ZoomSettings.load(argv)

    from services.zoom.app import create_app
    from shared.service.logs import configure_logs
    from shared.service.process import plain_errors
    from shared.service.serve import serve

    configure_logs("zoom", settings.log_level)
    with plain_errors():
        serve(create_app(settings), settings.host, settings.port)


if __name__ == "__main__":
    main(sys.argv[1:])
