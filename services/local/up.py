"""`medvr local up`: the stack with a trained policy, ready for the first case."""

import time
from pathlib import Path

from rich.console import Console

from services.local.greeting import greet, say_which_port
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.settings import TINY, UpSettings
from services.local.stack import initial_state, running_stack, sleep_until_interrupted
from services.local.state import StackError, StackFolder
from shared.checkpoint import check_checkpoint
from shared.weights import CLINIC_CHANNEL

_MAX_NUM_SEQS = 32
_EXAMPLES = 4
"""Phantoms to try the clinic with."""


def shipped_checkpoint() -> Path:
    """The trained policy that comes with the code, or the base where there is none.

    Raises `StackError` if there is neither.
    """
    for name in ("trained", "base"):
        if (TINY / name / "config.json").is_file():
            return TINY / name
    raise StackError(f"{TINY} holds no checkpoint; give one with --model")


def calibration_of(checkpoint: Path) -> Path | None:
    """What `medvr clinic calibrate` found for a checkpoint, if it lies beside the weights."""
    path = checkpoint / "calibration.json"
    return path if path.is_file() else None


def up(settings: UpSettings, console: Console) -> None:
    """Start, print how to use it, serve until interrupted. Raises `StackError`, `WeightsError`."""
    checkpoint = (settings.model or shipped_checkpoint()).resolve()
    check_checkpoint(checkpoint)
    folder = StackFolder(settings.folder)
    lines = CommandLines(StackPaths(folder.root), StackPorts.find(settings.clinic_port))
    examples = folder.root / "problems" / "brain-test"
    started = time.monotonic()
    with running_stack(folder, initial_state("up", lines), console) as stack:
        say_which_port(console, settings.clinic_port, lines.ports.clinic)
        stack.start(lines.valkey(settings.fsync))
        zoom = lines.zoom()
        services = [
            lines.policy(
                checkpoint,
                channel=CLINIC_CHANNEL,
                max_num_seqs=_MAX_NUM_SEQS,
                threads=settings.threads,
            ),
            lines.cca(),
            lines.clinic(calibration_of(checkpoint)),
            lines.clinic_worker(),
        ]
        stack.launch(*services)
        stack.start(zoom)
        if not (examples / "manifest.json").is_file():
            job = lines.phantoms(
                [examples.name], examples.parent, num_train=_EXAMPLES, num_test=_EXAMPLES
            )
            stack.run_job(job)
        stack.wait_for(*services)
        console.print(
            f"ready after {time.monotonic() - started:.0f} s with the checkpoint {checkpoint}"
        )
        greet(console, lines.clinic_url, lines.paths, examples)
        sleep_until_interrupted(stack)
