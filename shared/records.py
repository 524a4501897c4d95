"""The folder of a long job that may be interrupted: its configuration, and one line per record.

`config.json` is written first and says what is being measured; `records.jsonl` grows by one
complete line per record, so an interrupted job loses at most what is in flight, and a line torn
by a kill is dropped when the folder is read again. Continuing with another configuration would
mix two measurements: that is an error which names what differs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from shared.errors import MedvrError

C = TypeVar("C", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


class RecordFolder(Generic[C, R]):
    """The files of one job."""

    def __init__(
        self,
        path: Path,
        config_type: type[C],
        record_type: type[R],
        *,
        job: str,
        error: type[MedvrError],
        written: Sequence[str] = (),
    ) -> None:
        """`job` is what messages call it, `error` what it raises, `written` its other files."""
        self.path = path
        self._config_type, self._record_type = config_type, record_type
        self._job, self._error = job, error
        self._written = ("config.json", "records.jsonl", *written)
        self._records_path = path / "records.jsonl"

    def clear(self) -> None:
        """Remove what the job writes here, and nothing else."""
        for name in self._written:
            (self.path / name).unlink(missing_ok=True)

    def open(self, config: C) -> None:
        """Start here, or make sure that what is here was started with the same configuration.

        Raises the job's error naming every setting that differs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        config_path = self.path / "config.json"
        if not config_path.is_file():
            config_path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
            return
        try:
            found = msgspec.json.decode(config_path.read_bytes(), type=self._config_type)
        except msgspec.MsgspecError as error:
            raise self._error(f"{config_path}: {error}; --fresh starts over") from error
        before, now = msgspec.to_builtins(found), msgspec.to_builtins(config)
        differing = [f"{k} was {before[k]!r}, is {now[k]!r}" for k in now if before[k] != now[k]]
        if differing:
            raise self._error(
                f"{self.path} holds another {self._job}: {'; '.join(differing)}. "
                "Choose another --out, or --fresh to start over"
            )

    def read(self) -> list[R]:
        """The records in the order they were made; drops a torn last line."""
        if not self._records_path.is_file():
            return []
        lines = self._records_path.read_bytes()
        whole = lines[: lines.rfind(b"\n") + 1]
        if len(whole) < len(lines):
            self._records_path.write_bytes(whole)
        try:
            return [msgspec.json.decode(x, type=self._record_type) for x in whole.splitlines()]
        except msgspec.MsgspecError as error:
            raise self._error(f"{self._records_path}: {error}; --fresh starts over") from error

    def append(self, record: R) -> None:
        """Add a record as one line."""
        with self._records_path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
