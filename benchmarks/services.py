"""Real services for a benchmark: the embedded stack's own machinery, in a folder of its own."""

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.settings import TINY
from services.local.spec import ProcessSpec
from services.local.stack import Stack, initial_state, running_stack
from services.local.state import StackFolder

FOLDER = Path(".medvr/benchmarks")
"""Blobs, logs and problem sets of benchmarks; a demo beside it is not touched."""

CHECKPOINT = TINY / "base"
TRAINED = TINY / "trained"
MAX_NUM_SEQS = 64
CLINIC_PORT = 18_080


@contextmanager
def benchmark_stack(name: str, folder: Path) -> Generator[tuple[Stack, CommandLines]]:
    """A stack to start services in, and their command lines; says on stderr what it waits for."""
    root = StackFolder(folder / name)
    lines = CommandLines(StackPaths(root.root), StackPorts.find(CLINIC_PORT))
    state = initial_state(f"benchmark {name}", lines)
    with running_stack(root, state, Console(stderr=True)) as stack:
        yield stack, lines


def policy_spec(lines: CommandLines, checkpoint: Path, *, channel: str = "none") -> ProcessSpec:
    """The policy server as the demo starts it."""
    return lines.policy(checkpoint, channel=channel, max_num_seqs=MAX_NUM_SEQS, threads=1)


def plain_policy(lines: CommandLines, checkpoint: Path) -> tuple[ProcessSpec, str]:
    """A second policy server that computes no entropies, and its URL."""
    ports = dataclasses.replace(lines.ports, policy=StackPorts.find(CLINIC_PORT).policy)
    own = CommandLines(lines.paths, ports)
    spec = policy_spec(own, checkpoint)
    command = (*spec.command, "--no-entropies")
    return dataclasses.replace(spec, name="policy-plain", command=command), own.policy_url
