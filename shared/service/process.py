"""How a process ends when it cannot do its work: 1 and one line, not a traceback.

(2 and one line is for settings, see `settings`.)
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from shared.errors import MedvrError


@contextmanager
def plain_errors(*others: type[Exception]) -> Generator[None]:
    """Turn what this system raises on purpose, and a file that cannot be used, into the end.

    `others` are errors of libraries whose own words are clear enough.
    """
    try:
        yield
    except (MedvrError, *others) as error:
        reason = str(error)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
    else:
        return
    sys.stderr.write(f"error: {reason}\n")
    raise SystemExit(1)
