"""`python -m benchmarks`: runs all benchmarks, or those named, and refreshes README.md's table.

Each runs in a process of its own. One that fails leaves its last result as it is, and the command
fails after the others have run.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.outcome import Outcome, decode_outcome
from benchmarks.results import FOLDER as RESULTS
from benchmarks.results import Measured, read_results, refresh_table, write_result

NAMES = ("cca", "zoom", "entropy", "rollout", "loop", "clinic", "trainer", "evidence", "windowing")
FOLDER = Path(__file__).parent
MEASURED_ELSEWHERE = ("trainer_gpu",)
"""Rows of the table that need another machine."""


def run_one(name: str) -> Outcome:
    """Run a benchmark; its progress goes to stderr. Raises `CalledProcessError`."""
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=FOLDER.parent)
    line = done.stdout.splitlines()[-1]
    print(line.decode(), flush=True)
    return decode_outcome(line)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    names = parser.parse_args(argv).names or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(NAMES)}")
    failed: list[str] = []
    for name in names:
        try:
            write_result(RESULTS, name, Measured.now(run_one(name)))
        except subprocess.CalledProcessError:
            failed.append(name)
    refresh_table(FOLDER / "README.md", read_results(RESULTS, (*NAMES, *MEASURED_ELSEWHERE)))
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
