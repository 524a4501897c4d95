"""Published policy versions: a folder that is complete or absent, and a key that points at it.

`weights/<run>/<version>/` holds an ordinary HF checkpoint, `medvr.json` (what a caller must know
to use this policy) and `manifest.json` (hashes of all files, written last, before the folder is
renamed into place). Versions of a run only grow and are never reused. The trainer writes; policy
replicas read the channel key and pull.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import WeightsError
from shared.geometry import PixelLimits

TRAIN_CHANNEL = "policy:train"
CLINIC_CHANNEL = "policy:clinic"
BASE_RUN = "base"
"""The run of weights that no run has published: a checkpoint a policy was started with."""
POLICY_MANIFEST = "medvr.json"
VERSION_MANIFEST = "manifest.json"
_WEIGHT_FILES = "*.safetensors"


class PolicyManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`medvr.json` of a checkpoint: how the policy is shown images, what it was trained with."""

    format: int
    name: str
    tools: list[str]
    view: PixelLimits
    crop: PixelLimits
    min_side_px: int
    max_turns: int
    made_by: dict[str, Any] = {}
    """Command, seed, revision and metrics of the run that made it; for people."""


class VersionManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` of a published version."""

    run: str
    version: int
    sha256_by_file: dict[str, str]


class ChannelPointer(msgspec.Struct, frozen=True, kw_only=True):
    """Value of a channel key: the version its followers should serve."""

    run: str
    version: int
    path: str
    """Folder of the version, on storage that trainer and replicas share."""


DEFAULT_MANIFEST = PolicyManifest(
    format=1,
    name="unnamed",
    tools=["zoom_in"],
    view=PixelLimits(256 * 28 * 28, 1280 * 28 * 28),
    crop=PixelLimits(64 * 28 * 28, 512 * 28 * 28),
    min_side_px=28,
    max_turns=5,
)
"""For a checkpoint from a hub that carries no `medvr.json`."""


def read_policy_manifest(checkpoint: Path) -> PolicyManifest:
    """The policy manifest of a checkpoint folder, or the default if it carries none.

    Raises `WeightsError` if the file is there and does not validate.
    """
    path = checkpoint / POLICY_MANIFEST
    if not path.is_file():
        return DEFAULT_MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=PolicyManifest)
    except msgspec.MsgspecError as error:
        raise WeightsError(f"{path}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(checkpoint: Path) -> str | None:
    """What tells weights apart wherever they lie: the digest of `<sha256>  <name>` per weight file.

    Of a published version the hashes are those of its manifest, of another folder they are worked
    out (about a second per gigabyte). None if the folder holds no weights, as where `checkpoint`
    is the name of one on a hub.
    """
    published = checkpoint / VERSION_MANIFEST
    if published.is_file():
        by_file = msgspec.json.decode(published.read_bytes(), type=VersionManifest).sha256_by_file
    else:
        by_file = {path.name: _sha256(path) for path in checkpoint.glob(_WEIGHT_FILES)}
    weights = sorted(name for name in by_file if Path(name).match(_WEIGHT_FILES))
    lines = "".join(f"{by_file[name]}  {name}\n" for name in weights)
    return hashlib.sha256(lines.encode()).hexdigest() if weights else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_version(staging: Path, root: Path, run: str, version: int) -> ChannelPointer:
    """Turn a staged HF checkpoint into `root/<run>/<version>`; the rename is the commit.

    `staging` must be on the same filesystem as `root`. A version already published is left as it
    is (a restarted trainer publishes its last checkpoint again) and the staging folder removed.
    """
    target = root / run / f"{version:06d}"
    pointer = ChannelPointer(run=run, version=version, path=str(target))
    if target.exists():
        shutil.rmtree(staging)
        return pointer
    files = sorted(p for p in staging.iterdir() if p.is_file())
    manifest = VersionManifest(
        run=run, version=version, sha256_by_file={p.name: _sha256(p) for p in files}
    )
    (staging / VERSION_MANIFEST).write_bytes(msgspec.json.encode(manifest))
    for path in [*files, staging / VERSION_MANIFEST, staging]:
        _sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(target)
    _sync(target.parent)
    return pointer


def verify_version(folder: Path, *, weights: bool = True) -> VersionManifest:
    """The manifest of a published version after checking every hash. Raises `WeightsError`.

    Without `weights` the hashes of the weights, which take as long as reading them, are left out.
    """
    path = folder / VERSION_MANIFEST
    if not path.is_file():
        raise WeightsError(f"{folder} is not a published version: it has no {VERSION_MANIFEST}")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=VersionManifest)
    except msgspec.MsgspecError as error:
        raise WeightsError(f"{path}: {error}") from error
    for name, digest in manifest.sha256_by_file.items():
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: {name} is missing")
        if not weights and name.endswith(".safetensors"):
            continue
        if _sha256(folder / name) != digest:
            raise WeightsError(f"{folder}: {name} is not what the manifest says")
    return manifest


def prune_versions(root: Path, run: str, keep: int) -> None:
    """Remove all but the newest `keep` versions of a run."""
    folder = root / run
    if not folder.is_dir():
        return
    for old in sorted(p for p in folder.iterdir() if p.name.isdigit())[:-keep]:
        shutil.rmtree(old)


def channel_key(channel: str) -> str:
    """The Redis key of a channel: `medvr:weights:policy:train`."""
    return f"medvr:weights:{channel}"


def encode_pointer(pointer: ChannelPointer) -> bytes:
    """The channel key's value."""
    return msgspec.json.encode(pointer)


def decode_pointer(value: bytes | str) -> ChannelPointer:
    """Raises `WeightsError` if the channel key holds something else."""
    try:
        return msgspec.json.decode(value, type=ChannelPointer)
    except msgspec.MsgspecError as error:
        raise WeightsError(f"weights channel: {error}") from error
