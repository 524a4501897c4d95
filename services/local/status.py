"""`medvr local status`: the running stack at a glance, asked afresh."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import redis
from rich.console import Console
from rich.table import Table

from services.local.channel import describe_policy
from services.local.ready import is_ready
from services.local.state import ProcessState, StackFolder, StackState
from services.local.supervisor import ChildState
from shared.stream import RunStream
from shared.weights import BASE_RUN

_TIMEOUT_S = 2.0


def status(folder: StackFolder, console: Console) -> bool:
    """Print the state of every process, of the policy and of the run; False if none runs."""
    state = folder.read()
    if state is None or not folder.is_held():
        console.print(f"nothing is running in {folder.root}")
        if state is not None:
            console.print("(its supervisor was killed; `make down` tidies up)")
        return False
    running_for = _span(time.time() - state.started_at)
    head = (
        f"`{state.command}` in {folder.root}, process {state.supervisor_pid}, for {running_for}",
        f"clinic: {state.url}",
        f"logs: {folder.logs}",
    )
    for line in head:
        console.print(line, soft_wrap=True)
    console.print(_process_table(state))
    for line in (_policy_line(state), _run_line(state)):
        if line:
            console.print(line, soft_wrap=True)
    return True


def _process_table(state: StackState) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("process")  # the one that gives way on a narrow terminal
    for title in ("state", "ready", "for", "restarts", "pid", "port"):
        table.add_column(title, no_wrap=True)
    with ThreadPoolExecutor(max_workers=8) as pool:
        ready = list(pool.map(_ready, state.processes))
    for process, answer in zip(state.processes, ready, strict=True):
        runs = process.state is ChildState.RUNNING
        table.add_row(
            process.name,
            process.state.value,
            answer,
            _span(time.time() - process.started_at) if runs else "",
            str(process.num_restarts),
            str(process.pid),
            "" if process.port is None else str(process.port),
        )
    return table


def _ready(process: ProcessState) -> str:
    if process.state is not ChildState.RUNNING:
        return ""
    return "[green]yes" if is_ready(process.probe, process.port) else "[red]no"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


def _policy_line(state: StackState) -> str:
    """Which weights are served; empty while the policy does not answer."""
    try:
        policy = describe_policy(state.policy_url, _TIMEOUT_S)
    except httpx.HTTPError:
        return ""
    if policy.run == BASE_RUN:
        return f"policy: {policy.model}, the checkpoint it was started with"
    return f"policy: {policy.model}, run {policy.run}, version {policy.version}"


def _run_line(state: StackState) -> str:
    """Where the training run is; empty without one."""
    if state.run is None:
        return ""
    try:
        with redis.Redis.from_url(state.redis_url, socket_timeout=_TIMEOUT_S) as client:
            stream = RunStream(client, state.run)
            fates = Counter(fate.value for fate in stream.fates().values())
            fed, waiting = stream.cursor(), stream.length()
    except redis.RedisError as error:
        return f"run {state.run}: Valkey does not answer ({error})"
    counted = ", ".join(f"{number} {fate}" for fate, number in sorted(fates.items())) or "none yet"
    return f"run {state.run}: {fed} groups fed, {waiting} waiting on the stream; fates: {counted}"
