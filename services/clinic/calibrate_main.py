"""`medvr clinic calibrate`: fit the probability that an answer is right, on a problem set."""

import sys
from collections.abc import Sequence

from services.clinic.calibrate_settings import CalibrateSettings
from shared.service.logs import configure_logs
from shared.service.process import plain_errors

INTERRUPTED = 130


def main(argv: Sequence[str]) -> None:
    """Entry point; exits with 1 and a plain message if the calibration cannot be finished."""
    settings = CalibrateSettings.load(argv)
    from services.clinic.calibrate import run

    configure_logs("calibrate", settings.log_level)
    try:
        with plain_errors():
            run(settings)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        raise SystemExit(INTERRUPTED) from None
