"""What was measured last, with date, machine and revision; and the table that is made of it."""

import datetime
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
import psutil

from benchmarks.cpu import num_processors
from benchmarks.outcome import Figure, Outcome

FOLDER = Path(__file__).parent / "results"

_BEGIN = "<!-- table: made by `make bench` -->"
_END = "<!-- end of table -->"


class Measured(msgspec.Struct, frozen=True):
    """An outcome, and when and where it was measured."""

    date: str
    machine: str
    revision: str
    outcome: Outcome

    @classmethod
    def now(cls, outcome: Outcome) -> Self:
        """Today, here, with the files as they are."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return cls(today, _machine(), _revision(), outcome)


def write_result(folder: Path, name: str, measured: Measured) -> None:
    """Keep it as `<name>.json`, in place of the one before."""
    folder.mkdir(exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(measured), indent=1)
    (folder / f"{name}.json").write_bytes(text + b"\n")


def read_results(folder: Path, names: Sequence[str]) -> list[Measured]:
    """Those that there are, in this order."""
    paths = [folder / f"{name}.json" for name in names]
    return [msgspec.json.decode(p.read_bytes(), type=Measured) for p in paths if p.is_file()]


def table_of(results: Sequence[Measured]) -> str:
    """One row per figure, in Markdown."""
    rows = ["| figure | measured | aim | met | date | revision |", "|---|---|---|---|---|---|"]
    for measured in results:
        rows += [_row(figure, measured) for figure in measured.outcome.figures]
    machines = sorted({measured.machine for measured in results})
    return "\n".join([*rows, "", f"Machine: {'; '.join(machines)}."])


def refresh_table(page: Path, results: Sequence[Measured]) -> None:
    """Put the table between its two marks. Raises `ValueError` if the page lacks them."""
    text = page.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the line {_BEGIN!r} or {_END!r}")
    page.write_text(f"{before}{_BEGIN}\n{table_of(results)}\n{_END}{after}")


def _row(figure: Figure, measured: Measured) -> str:
    met = {None: "", True: "yes", False: "**no**"}[figure.is_met]
    value = f"{figure.figure:g} {figure.unit}"
    cells = (figure.name, value, figure.aim or "", met, measured.date, measured.revision)
    return f"| {' | '.join(cells)} |"


def _machine() -> str:
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{num_processors()} cores of {_processor()}, {memory_gib:.0f} GiB"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _revision() -> str:
    """The commit that is checked out, with a plus if a file differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=10", "--dirty=+"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return described.stdout.strip() or "unknown"
