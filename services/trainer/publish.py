# pyright: basic
"""Publishing: the policy's weights as an ordinary HF checkpoint, and a channel key that names it.

Only weights that a checkpoint holds are published, and the version is the step: after a crash the
run comes back to a step at or after every published version, so a number never gets other weights.
The folder is staged beside its target and renamed by `shared.weights.publish_version`; the channel
key is set after that. Everything but the weights is copied from the base checkpoint unchanged:
config, tokenizer, processor, chat template, `medvr.json`.
"""

import logging
import shutil
from pathlib import Path

import redis
import torch
from safetensors import safe_open
from torch import Tensor

from services.trainer.model import skeleton
from services.trainer.transfer import WeightTransfer, published_tensors
from shared.errors import WeightsError
from shared.weights import (
    VERSION_MANIFEST,
    ChannelPointer,
    channel_key,
    encode_pointer,
    prune_versions,
    publish_version,
)

logger = logging.getLogger(__name__)

_COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_STAGING = ".staging"


class Publisher:
    """Writes the versions of one run and moves its channel."""

    def __init__(
        self,
        client: "redis.Redis",
        *,
        base: Path,
        root: Path,
        run: str,
        channel: str,
        keep: int,
        transfer: WeightTransfer,
    ) -> None:
        self._client = client
        self._base = base
        self._root = root.resolve()
        self._run = run
        self._channel = channel
        self._keep = keep
        self._transfer = transfer
        self._skeleton = skeleton(base)
        self.dtype: torch.dtype = getattr(self._skeleton.config, "dtype", None) or torch.float32
        """Of the base checkpoint, and so of every version."""
        self._pointer: ChannelPointer | None = None

    def newest_version(self) -> int | None:
        """The highest version published under this run's name, by whomever."""
        folder = self._root / self._run
        if not folder.is_dir():
            return None
        return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=None)

    def refuse_reuse(self, step: int) -> None:
        """Raises `WeightsError` if versions after `step` exist: they would get other weights."""
        newest = self.newest_version()
        if newest is not None and newest > step:
            raise WeightsError(
                f"run {self._run!r} has published version {newest}, but its newest checkpoint is "
                f"step {step}: versions are never reused. Choose another run, or remove "
                f"{self._root / self._run}"
            )

    def write(self, weights: dict[str, Tensor], version: int) -> ChannelPointer:
        """Write the version, or find it there with these weights.

        `weights` are those of the plain checkpoint, whole and in host memory. Raises `WeightsError`
        if the version is there with others.
        """
        target = self._root / self._run / f"{version:06d}"
        staging = self._stage(weights)
        if target.is_dir() and not _same_weights(staging, target):
            raise WeightsError(
                f"{target} holds other weights than step {version} of this run: versions are "
                f"never reused. Choose another run, or remove {target.parent}"
            )
        pointer = publish_version(staging, self._root, self._run, version)
        prune_versions(self._root, self._run, self._keep)
        logger.info("published version %d", version)
        return pointer

    def release(self, pointer: ChannelPointer, *, send: bool) -> None:
        """From now on `announce` tells of this version; who can receive it is sent it here."""
        self._pointer = pointer
        if send:
            self._transfer.offer(pointer, published_tensors(Path(pointer.path)))

    def announce(self) -> None:
        """Point the channel at the newest version; again after an emptied Redis."""
        if self._pointer is not None:
            self._client.set(channel_key(self._channel), encode_pointer(self._pointer))

    def _stage(self, weights: dict[str, Tensor]) -> Path:
        """The checkpoint in a folder on the filesystem of the versions."""
        staging = self._root / self._run / _STAGING
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
        self._skeleton.save_pretrained(staging, state_dict=weights)
        for path in sorted(self._base.iterdir()):
            is_weights = path.name.endswith(".index.json") or path.name == VERSION_MANIFEST
            if path.is_file() and path.suffix in _COPIED_SUFFIXES and not is_weights:
                shutil.copyfile(path, staging / path.name)
        return staging


def _same_weights(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold the same tensors under equal names in equal files.

    To two units in the last place: adapters are merged anew at every start, perhaps on another
    kind of processor.
    """
    names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in (left, right)]
    if names[0] != names[1]:
        return False
    for name in names[0]:
        with safe_open(left / name, "pt") as ours, safe_open(right / name, "pt") as theirs:
            keys = sorted(ours.keys())
            if keys != sorted(theirs.keys()):
                return False
            if not all(_nearly_equal(ours.get_tensor(k), theirs.get_tensor(k)) for k in keys):
                return False
    return True


def _nearly_equal(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    unit = torch.finfo(left.dtype).eps
    return torch.allclose(left.float(), right.float(), rtol=2 * unit, atol=2 * unit * 1e-3)
