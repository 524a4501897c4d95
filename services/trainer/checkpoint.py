# pyright: basic
"""Checkpoints: a folder is complete or absent, and resuming takes the newest complete one.

`<run folder>/checkpoints/000012/` holds what is trained, weights and optimizer state, in
torch.distributed.checkpoint's format (each rank writes its shards, any number of ranks can read
them) and `progress.json` (step, feeder's cursor, closed fates, sizes of the files). Weights are
copied at once and written in the background under another name; when all ranks have written and
synced theirs the leader adds progress.json and renames, and the rename is the commit. The learning
rate is a function of the step and nothing in a step is drawn, so there is no scheduler and no
generator to keep; a published version's number is its step.
"""

import hashlib
import logging
import os
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from services.trainer.world import World
from shared.errors import WeightsError
from shared.stream import Fate

logger = logging.getLogger(__name__)

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a world of one means it

_PROGRESS = "progress.json"
_PARTIAL = ".partial-"
_SAMPLED_BYTES = 2**20


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of which model a checkpoint has; the rest is the base's."""

    base: str
    """Fingerprint of the base checkpoint's weights."""
    freeze_vision: bool
    lora_rank: int
    lora_alpha: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run had come."""

    run: str
    step: int
    """Optimizer batches taken; also the policy version of these weights."""
    cursor: int
    """Groups the feeder had handed out."""
    fates: dict[str, Fate]
    """Fate by group id, of every closed group; *trained* ones are in these weights."""
    trained: Trained
    num_bytes_by_file: dict[str, int] = {}


def write_state(folder: Path, state: dict[str, Any], world: World) -> "Future[Any]":
    """All ranks: copy a state now and write it into `folder` in the background, synced to disk."""
    writer = FileSystemWriter(folder, sync_files=True)
    if world.mesh is None:
        return async_save(state, storage_writer=writer, no_dist=True)  # type: ignore[return-value]
    return async_save(state, storage_writer=writer, process_group=world.saving)  # type: ignore[return-value]


def read_state(folder: Path, state: dict[str, Any], world: World) -> None:
    """All ranks: fill a state from a checkpoint. Raises `WeightsError` if it is of another model.

    More in the checkpoint than in the state is not seen here: `refuse_other_settings` sees it.
    """
    reader = FileSystemReader(folder)
    try:
        load(
            state,
            storage_reader=reader,
            process_group=world.saving,
            no_dist=world.mesh is None,
        )
    except CheckpointException as error:
        reasons = "; ".join(sorted({str(e[0]) for e in error.failures.values()}))
        raise WeightsError(
            f"checkpoint {folder} does not fit what these settings train: {reasons}"
        ) from error


def refuse_other_settings(progress: Progress, now: Trained) -> None:
    """Raises `WeightsError` if a run would go on with something else trained than before."""
    before = progress.trained
    for name in Trained.__struct_fields__:
        was, is_now = getattr(before, name), getattr(now, name)
        if was == is_now:
            continue
        what = "another base model" if name == "base" else f"{name} {is_now}, it had {was}"
        raise WeightsError(
            f"run {progress.run!r} cannot go on with {what}: its checkpoint holds only what was "
            "trained. Choose another run"
        )


def fingerprint(checkpoint: Path) -> str:
    """Of a checkpoint's weights: sizes, and the first and last MiB of each file."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED_BYTES))
            file.seek(max(0, size - _SAMPLED_BYTES))
            digest.update(file.read(_SAMPLED_BYTES))
    return digest.hexdigest()


class CheckpointStore:
    """The checkpoints of one run, as its leader sees them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover)

    def begin(self, step: int) -> Path:
        """An empty folder for the state after `step` steps; `commit` makes it a checkpoint."""
        partial = self._folder / f"{_PARTIAL}{step:06d}"
        partial.mkdir()
        return partial

    def commit(self, progress: Progress) -> Path:
        """Make what was begun a checkpoint, then drop all but the newest `keep`; its folder.

        Raises `WeightsError` if what a rank has written is not here.
        """
        partial = self._folder / f"{_PARTIAL}{progress.step:06d}"
        written = FileSystemReader(partial).read_metadata().storage_data or {}
        missing = {w.relative_path for w in written.values()} - {p.name for p in partial.iterdir()}
        if missing:
            raise WeightsError(
                f"{partial} lacks {', '.join(sorted(missing))}, which another rank has written: "
                "run_root must be storage that all ranks share"
            )
        target = self._folder / f"{progress.step:06d}"
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
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

    def _folders(self) -> list[Path]:
        return sorted(p for p in self._folder.iterdir() if p.name.isdigit())


def _read_progress(folder: Path) -> Progress | None:
    """The progress of a checkpoint, or None if a file is missing or not of its size."""
    try:
        progress = msgspec.json.decode((folder / _PROGRESS).read_bytes(), type=Progress)
        for name, num_bytes in progress.num_bytes_by_file.items():
            if (folder / name).stat().st_size != num_bytes:
                return None
        if ".metadata" not in progress.num_bytes_by_file:
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
