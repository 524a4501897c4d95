"""Watches versions and groups from outside while a run goes on; remembers what it saw.

Every look is allowed to fail (that is what the run is about), no look may see a contradiction:
a channel that goes back, a version with other weights than before or ahead of the checkpoints.
"""

import redis

from services.local.channel import read_channel
from shared.errors import PayloadError
from shared.trajectory import decode_group
from shared.weights import TRAIN_CHANNEL, verify_version
from tests.chaos.system import System


class Witness:
    """What was seen of one run."""

    def __init__(self, system: System) -> None:
        self.hashes_by_version: dict[int, dict[str, str]] = {}
        """Of every version the channel pointed at."""
        self.sampled_versions: set[int] = set()
        """That tokens of groups on the stream came from."""
        self.contradictions: list[str] = []
        self._system = system

    def look(self) -> None:
        """One look at the channel and the stream."""
        try:
            self._look_at_channel()
            self._look_at_stream()
        except redis.RedisError:
            pass  # it is down, or was emptied between two commands

    def _look_at_channel(self) -> None:
        pointer = read_channel(self._system.redis, TRAIN_CHANNEL)
        if pointer is None:
            return
        if pointer.run != self._system.run:
            if self.hashes_by_version:
                self.contradictions.append(f"the channel went over to {pointer.run}")
            return  # of the run before, until this one publishes its first
        version = pointer.version
        newest = max((int(p.name) for p in self._checkpoints()), default=0)
        if version > newest:
            self.contradictions.append(f"version {version} is published, checkpoint is {newest}")
        if self.hashes_by_version and version < max(self.hashes_by_version):
            self.contradictions.append(f"the channel went back to {version}")
        hashes = verify_version(self._system.versions_folder / f"{version:06d}").sha256_by_file
        if self.hashes_by_version.setdefault(version, hashes) != hashes:
            self.contradictions.append(f"version {version} was given other weights")

    def _checkpoints(self) -> list:
        folder = self._system.run_folder / "checkpoints"
        return [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []

    def _look_at_stream(self) -> None:
        for _, fields in self._system.redis.xrange(self._system.stream.groups_key):
            try:
                group = decode_group(fields[b"group"])
            except PayloadError as error:
                self.contradictions.append(str(error))
                continue
            self.sampled_versions |= {
                span.version
                for trajectory in group.trajectories
                for turn in trajectory.turns
                for span in turn.generation.version_spans
            }
