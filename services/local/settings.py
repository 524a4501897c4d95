"""Settings of `medvr local up | demo | ship | status | down`."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.service.settings import ServiceSettings, settings_config

TINY = Path(__file__).resolve().parent.parent / "trainer" / "tiny"
"""The shipped weights of the tiny policy: `base` and `trained`."""


def _config(command: str) -> SettingsConfigDict:
    config = settings_config(f"local_{command}")
    config["cli_prog_name"] = f"medvr local {command}"
    return config


class _FolderSettings(ServiceSettings):
    folder: Path = Path(".medvr")
    """Where the stack keeps everything: data, logs, state."""


class _StackSettings(_FolderSettings):
    clinic_port: int = Field(default=8080, ge=1, le=65535)
    """Port of the clinic; the next free one if it is taken. All others are found."""
    fsync: Literal["everysec", "always"] = "everysec"
    """When Valkey's append-only file reaches the disk."""


class UpSettings(_StackSettings):
    """Start the stack without training and serve until Ctrl-C."""

    model_config = _config("up")

    model: Path | None = None
    """Checkpoint to serve; unset means the shipped trained policy."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the policy."""


class DemoSettings(_StackSettings):
    """Train a policy on brain phantoms, evaluate it before and after, and serve it."""

    model_config = _config("demo")

    resume: bool = False
    """Continue the demo that was interrupted."""
    fresh: bool = False
    """Remove what an earlier demo made and start over."""
    arm: Literal["medvr", "zoom_only", "both"] = "medvr"
    """The method; the same without EVR and CCA; or one after the other, compared."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of each arm; unset means the demo's own number."""
    seed: int = Field(default=0, ge=0)
    """Seed of the training."""
    model: Path = TINY / "base"
    """Checkpoint to start from."""
    serve: bool = True
    """At the end, leave the clinic running until Ctrl-C; `--no-serve` ends instead."""
    quick: bool = False
    """A few steps on a few problems: shows that everything works, trains nothing."""


class ShipSettings(_FolderSettings):
    """Make the policy of a finished demo the one that `up` serves."""

    model_config = _config("ship")

    out: Path = TINY / "trained"
    """Folder of the checkpoint; replaced if it is there."""


class StatusSettings(_FolderSettings):
    """Show the running stack."""

    model_config = _config("status") | {"cli_prog_name": "medvr status"}


class DownSettings(_FolderSettings):
    """Stop the running stack."""

    model_config = _config("down")

    timeout_s: float = Field(default=60.0, gt=0)
    """How long it may take."""
