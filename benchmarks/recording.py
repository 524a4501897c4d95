"""Groups that a policy once made, in a file: what `benchmarks.record` writes and others read.

A recording is a zip archive: `groups/000.msgpack` and so on, as they travelled on the stream, and
`blobs/<sha256>`, every image they show. Its comment is the command that made it.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.blobs import BlobStore, sha256_hex
from shared.errors import BlobError
from shared.trajectory import ImageSpan, TrajectoryGroup, decode_group, encode_group, spans_of

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Recording:
    """Some groups and their images."""

    groups: list[TrajectoryGroup]
    blobs: dict[str, bytes]
    """By name."""
    made_by: str
    """The command."""

    @classmethod
    def of(cls, groups: Sequence[TrajectoryGroup], blobs: BlobStore, made_by: str) -> "Recording":
        """With the images that they show. Raises `BlobError`."""
        names = sorted({span.image for group in groups for span in shown_images(group)})
        return cls(list(groups), {name: blobs.get(name) for name in names}, made_by)

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Raises `PayloadError`, or `BlobError` for an image whose content has another hash."""
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            groups = [decode_group(archive.read(n)) for n in names if n.startswith("groups/")]
            blobs = {
                n.removeprefix("blobs/"): archive.read(n) for n in names if n.startswith("blobs/")
            }
            made_by = archive.comment.decode()
        for name, content in blobs.items():
            if sha256_hex(content) != name:
                raise BlobError(f"{path}: image {name} is damaged")
        return cls(groups, blobs, made_by)

    def write(self, path: Path) -> None:
        """The same recording always makes the same bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.comment = self.made_by.encode()
            for number, group in enumerate(self.groups):
                _add(archive, f"groups/{number:03}.msgpack", encode_group(group))
            for name, content in self.blobs.items():
                _add(archive, f"blobs/{name}", content)

    def unpack(self, blobs: BlobStore) -> list[TrajectoryGroup]:
        """Put the images where a trainer looks for them; the groups."""
        for content in self.blobs.values():
            blobs.put(content)
        return self.groups


def shown_images(group: TrajectoryGroup) -> list[ImageSpan]:
    """All images of all trajectories, repeated as often as they are shown."""
    return [
        span
        for trajectory in group.trajectories
        for span in spans_of(group.prompt, trajectory)
        if isinstance(span, ImageSpan)
    ]


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """With a fixed date, which `writestr` would otherwise take from the clock."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
