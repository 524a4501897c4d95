"""`medvr status`, also `medvr local status`: settings, imports, run."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from services.local.settings import StatusSettings

NOTHING_RUNS = 3


def main(argv: Sequence[str]) -> NoReturn:
    """Show the running stack; ends with 3 if none runs."""
    settings = StatusSettings.load(argv)
    from rich.console import Console

    from services.local.state import StackFolder
    from services.local.status import status
    from shared.service.process import plain_errors

    with plain_errors():
        runs = status(StackFolder(settings.folder), Console())
    raise SystemExit(0 if runs else NOTHING_RUNS)


if __name__ == "__main__":
    main(sys.argv[1:])
