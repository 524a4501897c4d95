"""What a child process of the stack is: its command, its probe, when it is started again."""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Probe(StrEnum):
    """How a process is asked whether it is ready."""

    HTTP = "http"
    """`GET /ready` on its port answers 200."""
    VALKEY = "valkey"
    """PING on its port is answered."""
    NONE = "none"
    """A job: it is ready when it has finished."""


class Restart(StrEnum):
    """When a process that ended is started again."""

    ALWAYS = "always"
    """A service: whatever its exit status."""
    ON_FAILURE = "on_failure"
    """A job that continues where it was: status 0 means it is finished."""
    NEVER = "never"


class Output(StrEnum):
    """Where a process writes."""

    LOG = "log"
    TERMINAL = "terminal"
    """A job with a progress bar of its own: it inherits the supervisor's output."""


class Tier(IntEnum):
    """Who needs whom: a tier is stopped only after all higher tiers are gone."""

    STORE = 0
    SERVICE = 1
    WORKER = 2


@dataclass(frozen=True)
class ProcessSpec:
    """One child process."""

    name: str
    """Unique in the stack; also the name of its log."""
    command: tuple[str, ...]
    tier: Tier
    port: int | None = None
    """Of its probe; None for a job without one."""
    probe: Probe = Probe.HTTP
    restart: Restart = Restart.ALWAYS
    output: Output = Output.LOG
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """Added to the supervisor's own."""
