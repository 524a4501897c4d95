"""Which stages of a demo are done: what makes `--resume` continue anywhere.

`progress.json` is rewritten, whole, when a stage begins, ends, and every few seconds in between,
so that the time spent is right also after a kill. It holds the plan; a demo continues only under
the plan it was started with.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from services.local.demo_settings import DemoPlan
from services.local.state import StackError


class StageRecord(msgspec.Struct, kw_only=True):
    """One stage."""

    seconds: float = 0.0
    """Spent in it, over all attempts."""
    done: bool = False


class Progress(msgspec.Struct, kw_only=True):
    """`progress.json`."""

    plan: DemoPlan
    stages: dict[str, StageRecord] = {}


class Journal:
    """The stages of one demo, on disk."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress

    @classmethod
    def open(cls, path: Path, plan: DemoPlan, *, resume: bool) -> "Journal":
        """A new journal, or, to resume, the one that is there.

        Raises `StackError` if there is none to resume, one that would be overwritten, or one of
        another plan (naming what differs).
        """
        found = cls._read(path)
        if found is None:
            if resume:
                raise StackError(f"nothing to resume: there is no {path}; leave --resume out")
            journal = cls(path, Progress(plan=plan))
            journal.write()
            return journal
        if not resume:
            raise StackError(
                f"{path} records a demo already: --resume continues it, --fresh starts over "
                "(make: ARGS=--resume)"
            )
        differing = differences(found.plan, plan)
        if differing:
            raise StackError(
                f"the demo to resume was started with other settings: {'; '.join(differing)}. "
                "Give the same ones, or --fresh to start over"
            )
        return cls(path, found)

    @staticmethod
    def _read(path: Path) -> Progress | None:
        if not path.is_file():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Progress)
        except msgspec.MsgspecError as error:
            raise StackError(f"{path}: {error}; --fresh starts over") from error

    def write(self) -> None:
        """Replace the file, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".part")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self._progress)))
        temporary.replace(self._path)

    def is_done(self, stage: str) -> bool:
        """Whether a stage was finished, now or before."""
        record = self._progress.stages.get(stage)
        return record is not None and record.done

    def stage_seconds(self) -> dict[str, float]:
        """Time spent in every stage so far."""
        return {name: record.seconds for name, record in self._progress.stages.items()}

    @contextmanager
    def stage(self, name: str) -> Generator["StageClock"]:
        """Do a stage: it counts as done if the body returns."""
        record = self._progress.stages.setdefault(name, StageRecord())
        clock = StageClock(self, record)
        try:
            yield clock
            record.done = True
        finally:
            clock.tick()


class StageClock:
    """Adds up the time of a stage."""

    def __init__(self, journal: Journal, record: StageRecord) -> None:
        self._journal = journal
        self._record = record
        self._last = time.monotonic()

    def tick(self) -> float:
        """Count the time since the last tick, and keep it; all the stage's seconds so far."""
        now = time.monotonic()
        self._record.seconds += now - self._last
        self._last = now
        self._journal.write()
        return self._record.seconds


def differences(before: DemoPlan, now: DemoPlan) -> list[str]:
    """`trainer.lr was 0.001, is 0.0002` for every number in which two plans differ."""
    old, new = _leaves(msgspec.to_builtins(before)), _leaves(msgspec.to_builtins(now))
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _leaves(tree: object, prefix: str = "") -> dict[str, object]:
    """`{"trainer.lr": 0.001, …}`; lists count as one value."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found
