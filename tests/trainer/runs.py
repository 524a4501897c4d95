"""A run under test: settings, a stream with groups on it, a trainer of this process."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import redis
from prometheus_client import CollectorRegistry

from services.trainer.settings import TrainerSettings
from shared.stream import RunStream
from shared.trajectory import TrajectoryGroup, encode_group

if TYPE_CHECKING:
    import torch


def run_settings(
    folder: Path,
    *,
    checkpoint: Path,
    blob_url: str,
    redis_url: str,
    run: str = "run",
    **others: object,
) -> TrainerSettings:
    """Two groups a step, β = 0, one thread; `others` override."""
    chosen: dict[str, object] = {
        "model": str(checkpoint),
        "run": run,
        "run_root": folder / "runs",
        "weights_root": folder / "weights",
        "blob_url": blob_url,
        "redis_url": redis_url,
        "groups_per_step": 2,
        "max_outstanding": 8,
        "max_off_policy_steps": 8,
        "pack_tokens": 500,
        "max_steps": 2,
        "lr": 1e-3,
        "kl_beta": 0.0,
        "threads": 1,
        **others,
    }
    return TrainerSettings.model_validate(chosen)


def flags(settings: TrainerSettings) -> list[str]:
    """The settings as a command line."""
    given: list[str] = []
    for name in sorted(settings.model_fields_set):
        value, flag = getattr(settings, name), name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            given += [f"--{flag}", str(value)]
    return given


def feed(stream: RunStream, *groups: TrajectoryGroup) -> None:
    """What feeder and rollout workers do: mark as fed, append once scored."""
    for group in groups:
        assert stream.mark_fed(group.group_id, stream.cursor())
        assert stream.append(group.group_id, encode_group(group))


def open_stream(client: redis.Redis, run: str, *groups: TrajectoryGroup) -> RunStream:
    """An open run with these groups waiting."""
    stream = RunStream(client, run)
    stream.open({}, 0)
    feed(stream, *groups)
    return stream


def train(settings: TrainerSettings, stop: threading.Event | None = None) -> CollectorRegistry:
    """Run a trainer in this process until it ends; returns its metrics."""
    import torch

    from services.trainer.assembly import build_trainer, connect, locked_run
    from services.trainer.world import World

    registry = CollectorRegistry()
    with locked_run(settings.run_folder), connect(settings.redis_url) as client:
        world = World(torch.device("cpu"))
        build_trainer(settings, client, registry, stop or threading.Event(), world).run()
    return registry


def steps_of(settings: TrainerSettings) -> list[dict[str, float]]:
    """steps.jsonl of the run."""
    path = settings.run_folder / "steps.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def final_state(settings: TrainerSettings) -> dict[str, "torch.Tensor"]:
    """Weights and optimizer state of the last step's checkpoint, by name."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = settings.run_folder / "checkpoints" / f"{settings.max_steps:06d}"
    whole = settings.run_folder / "whole.pt"
    dcp_to_torch_save(folder, whole)
    state = torch.load(whole)
    tensors = dict(state["policy"])
    for name, values in state["optimizer"]["state"].items():
        tensors |= {f"{name} {key}": value for key, value in values.items()}
    return tensors
