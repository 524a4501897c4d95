"""`medvr clinic [serve]`: the case API and its viewer; `medvr clinic <command>`: see COMMANDS."""

import importlib
import sys
from collections.abc import Sequence

from services.clinic.settings import ClinicSettings

COMMANDS: dict[str, str] = {
    "calibrate": "services.clinic.calibrate_main",
    "export-feedback": "services.clinic.feedback_export",
    "reidentify": "services.clinic.reidentify",
}
"""Name → its module, which has a `main(argv)`."""


def main(argv: Sequence[str]) -> None:
    """Run a command; serve if none is named."""
    name, rest = (argv[0], argv[1:]) if argv else ("serve", argv)
    if name in COMMANDS:
        importlib.import_module(COMMANDS[name]).main(rest)
    elif name == "serve":
        serve_clinic(rest)
    elif name.startswith("-"):
        serve_clinic(argv)
    else:
        sys.stderr.write(f"error: no command {name!r}; there are serve, {', '.join(COMMANDS)}\n")
        raise SystemExit(2)


def serve_clinic(argv: Sequence[str]) -> None:
    """Serve until a signal. Exits with 1 if a database or the port cannot be used."""
    settings = ClinicSettings.load(argv)
    from services.clinic.app import create_app
    from services.clinic.pseudonyms import Pseudonyms
    from services.clinic.state import hang_up
    from services.clinic.store import CaseStore
    from shared.service.logs import configure_logs
    from shared.service.process import plain_errors
    from shared.service.serve import serve

    configure_logs("clinic", settings.log_level)
    with plain_errors():
        pseudonyms = settings.pseudonyms
        CaseStore(settings.database).close()
        Pseudonyms(pseudonyms).close()
        app = create_app(settings)
        serve(app, settings.host, settings.port, on_stop=lambda: hang_up(app))


if __name__ == "__main__":
    main(sys.argv[1:])
