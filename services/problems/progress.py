"""Progress of rendering: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm

_LINE_EVERY_S = 5.0


@contextmanager
def counting(title: str, total: int, unit: str) -> Generator[Callable[[int], object]]:
    """What to call with the number of further ones that are done."""
    if sys.stderr.isatty():
        with tqdm(total=total, desc=title, unit=unit, mininterval=0.2) as bar:
            yield bar.update
        return
    num_done, said_at = 0, time.monotonic()

    def add(number: int) -> None:
        nonlocal num_done, said_at
        num_done += number
        if time.monotonic() - said_at > _LINE_EVERY_S:
            said_at = time.monotonic()
            sys.stderr.write(f"{title}: {num_done}/{total}\n")

    yield add
