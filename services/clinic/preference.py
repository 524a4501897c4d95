"""`Prefer: wait=N` and `respond-async` (RFC 7240): how long a caller wants to wait.

What is malformed is ignored.
"""

import re
from collections.abc import Sequence

import msgspec

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE = re.compile(
    rf"\s*({_TOKEN})(?:\s*=\s*({_TOKEN}|{_QUOTED}))?"
    rf"(?:\s*;\s*(?:{_TOKEN}(?:\s*=\s*(?:{_TOKEN}|{_QUOTED}))?)?)*\s*(?:,|$)"
)
_MAX_DIGITS = 9


class Wait(msgspec.Struct, frozen=True):
    """A wait that is granted."""

    seconds: int
    applied: str
    """What of the header was followed, as `Preference-Applied` says it."""


def wait_preference(headers: Sequence[str], max_wait_s: int) -> Wait | None:
    """The wait that the lines of `Prefer` ask for, up to the longest; None if they ask for none.

    A line is read up to its first mistake. Of `wait` given twice, the first counts; without a
    sound one, `respond-async` is no wait at all.
    """
    waits: list[str] = []
    is_async = False
    for line in headers:
        position = 0
        while position < len(line):
            found = _PREFERENCE.match(line, position)
            if found is None:
                break
            name = found[1].lower()
            if name == "wait":
                waits.append((found[2] or "").strip('"'))
            is_async |= name == "respond-async"
            position = found.end()
    if waits and waits[0].isascii() and waits[0].isdigit() and len(waits[0]) <= _MAX_DIGITS:
        seconds = min(int(waits[0]), max_wait_s)
        return Wait(seconds, f"wait={seconds}")
    return Wait(0, "respond-async") if is_async else None
