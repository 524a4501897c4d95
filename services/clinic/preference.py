"""`Prefer: wait=N` (RFC 7240): how long a caller wants to wait. What is malformed is ignored."""

import re
from collections.abc import Sequence

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE = re.compile(
    rf"\s*({_TOKEN})(?:\s*=\s*({_TOKEN}|{_QUOTED}))?"
    rf"(?:\s*;\s*(?:{_TOKEN}(?:\s*=\s*(?:{_TOKEN}|{_QUOTED}))?)?)*\s*(?:,|$)"
)
_MAX_DIGITS = 9


def wait_preference_s(headers: Sequence[str]) -> int | None:
    """Seconds of the first `wait` among the lines of `Prefer`; None if there is no sound one.

    A line is read up to its first mistake. Of a preference given twice, the first counts.
    """
    for line in headers:
        position = 0
        while position < len(line):
            found = _PREFERENCE.match(line, position)
            if found is None:
                break
            if found[1].lower() == "wait":
                value = (found[2] or "").strip('"')
                is_sound = value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS
                return int(value) if is_sound else None
            position = found.end()
    return None
