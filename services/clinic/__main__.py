"""`medvr clinic [options]` serves the case API and its viewer; `medvr clinic <command>` works on
what a clinic has kept.
"""

import importlib
import sys
from collections.abc import Sequence

from services.clinic.settings import ClinicSettings

COMMANDS = {
    "export-feedback": "services.clinic.feedback_export",
}
"""Name → its module, which has a `main(argv)`."""


def main(argv: Sequence[str]) -> None:
    """Serve until a signal, or run one of the commands.

    Exits with 1 if the database or the port cannot be used.
    """
    if argv and argv[0] in COMMANDS:
        importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
        return
    settings = ClinicSettings.load(argv)
    from services.clinic.app import create_app
    from services.clinic.state import hang_up
    from services.clinic.store import CaseStore
    from shared.service.logs import configure_logs
    from shared.service.process import plain_errors
    from shared.service.serve import serve

    configure_logs("clinic", settings.log_level)
    with plain_errors():
        CaseStore(settings.database).close()
        app = create_app(settings)
        serve(app, settings.host, settings.port, on_stop=lambda: hang_up(app))


if __name__ == "__main__":
    main(sys.argv[1:])
