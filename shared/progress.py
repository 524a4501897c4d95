"""Progress of long work on stderr: a bar on a terminal, a line every now and then in a log."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE_EVERY_S = 5.0
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s{postfix}, {elapsed} gone, {remaining} to go"


class _Lines(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """Writes whole lines: a carriage return has no meaning in a file."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What writes one state."""

        def write(state: str) -> None:
            if state:
                file.write(f"{state}\n")
                file.flush()

        return write


def progress(
    steps: Iterable[T] | None = None,
    *,
    title: str,
    unit: str = "step",
    total: int | None = None,
    initial: int = 0,
) -> "tqdm[T]":
    """Iterates over steps, or counts what `update` is told; a context manager either way."""
    common: dict[str, Any] = {
        "iterable": steps,
        "total": total,
        "desc": title,
        "unit": unit,
        "initial": initial,
    }
    if sys.stderr.isatty():
        return tqdm(**common)
    return _Lines(mininterval=_LINE_EVERY_S, bar_format=_LINE, **common)
