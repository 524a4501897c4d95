# pyright: basic
"""Checkpoints: a folder is complete or absent, and resuming takes the newest complete one.

`<run folder>/checkpoints/000012/` holds `state.pt` (weights, optimizer, generators) and
`progress.json` (step, feeder's cursor, closed fates, sizes of the files). It is written under
another name, synced, and renamed; the rename is the commit. The learning rate is a function of the
step, so there is no scheduler state; a published version's number is its step.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch

from shared.stream import Fate

logger = logging.getLogger(__name__)

_STATE = "state.pt"
_PROGRESS = "progress.json"
_PARTIAL = ".partial-"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run had come."""

    run: str
    step: int
    """Optimizer batches taken; also the policy version of these weights."""
    cursor: int
    """Groups the feeder had handed out."""
    fates: dict[str, Fate]
    """Fate by group id, of every closed group; *trained* ones are in these weights."""
    num_bytes_by_file: dict[str, int] = {}


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover)

    def save(self, progress: Progress, state: dict[str, Any]) -> Path:
        """Make this state durable, then drop all but the newest `keep`; returns its folder."""
        partial = self._folder / f"{_PARTIAL}{progress.step:06d}"
        target = self._folder / f"{progress.step:06d}"
        partial.mkdir()
        with (partial / _STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        sizes = {_STATE: (partial / _STATE).stat().st_size}
        progress = msgspec.structs.replace(progress, num_bytes_by_file=sizes)
        with (partial / _PROGRESS).open("wb") as file:
            file.write(msgspec.json.encode(progress))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(partial)
        if target.exists():  # damaged: otherwise the run would have resumed from it
            shutil.rmtree(target)
        partial.rename(target)
        _sync_folder(self._folder)
        for old in self._folders()[: -self._keep]:
            shutil.rmtree(old)
        return target

    def newest(self) -> tuple[Progress, Path] | None:
        """Progress and folder of the newest complete checkpoint; None if there is none."""
        for folder in reversed(self._folders()):
            progress = _read_progress(folder)
            if progress is not None:
                return progress, folder
            logger.warning("checkpoint %s is damaged and passed over", folder.name)
        return None

    def load_state(self, folder: Path) -> dict[str, Any]:
        """The state saved with a checkpoint, on the CPU."""
        return torch.load(folder / _STATE, map_location="cpu", weights_only=True)

    def _folders(self) -> list[Path]:
        return sorted(p for p in self._folder.iterdir() if p.name.isdigit())


def _read_progress(folder: Path) -> Progress | None:
    """The progress of a checkpoint, or None if a file is missing or not of its size."""
    try:
        progress = msgspec.json.decode((folder / _PROGRESS).read_bytes(), type=Progress)
        for name, num_bytes in progress.num_bytes_by_file.items():
            if (folder / name).stat().st_size != num_bytes:
                return None
    except (OSError, msgspec.MsgspecError):
        return None
    return progress


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
