"""`medvr clinic [command] [options]`: serve the case API and its viewer, or one of its commands."""

import sys
from collections.abc import Callable, Sequence

from services.clinic.settings import ClinicSettings

INTERRUPTED = 130


def _serve(argv: Sequence[str]) -> None:
    """Serve until a signal. Exits with 1 if the database or the port cannot be used."""
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


def _calibrate(argv: Sequence[str]) -> None:
    """Fit the confidence on a problem set. Exits with 1 if that cannot be finished."""
    from services.clinic.calibrate_settings import CalibrateSettings

    settings = CalibrateSettings.load(argv)
    from services.clinic.calibrate import run
    from shared.service.logs import configure_logs
    from shared.service.process import plain_errors

    configure_logs("calibrate", settings.log_level)
    try:
        with plain_errors():
            run(settings)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        raise SystemExit(INTERRUPTED) from None


def _export_feedback(argv: Sequence[str]) -> None:
    """Write what reviewers said as a problem set. Exits with 1 if that cannot be done."""
    from services.clinic.feedback_export import main

    main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "calibrate": _calibrate,
    "export-feedback": _export_feedback,
}
"""Beside serving, which is what happens without a command; each has its own `--help`."""


def main(argv: Sequence[str]) -> None:
    """Dispatch to a command, or serve."""
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    elif argv and not argv[0].startswith("-"):
        sys.stderr.write(f"error: no command {argv[0]!r}; there is {', '.join(COMMANDS)}\n")
        raise SystemExit(2)
    else:
        _serve(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
