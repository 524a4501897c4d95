"""The second checkpoint, made once; and the embedded stack's own processes serving it."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from rich.console import Console

from services.local.leftovers import end_stack
from services.local.ports import free_ports
from services.local.processes import CommandLines, StackPaths, StackPorts
from services.local.ready import wait_until_ready
from services.local.supervisor import Supervisor
from services.policy.tokens import Vocabulary
from tests.fixtures_policy import START_TIMEOUT_S
from tests.realvocab.checkpoint import build_model, save_checkpoint
from tests.realvocab.played import Attempts, RunningStack, play
from tests.realvocab.vocabulary import NUM_ROWS, build_tokenizer
from tests.realvocab.warmup import tempt, warm_up

SEED = 0
_TIMEOUT_S = 1200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test pays for the start of the policy, whichever it is."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="package")
def vocabulary() -> Vocabulary:
    """The vocabulary as the policy server reads it."""
    return Vocabulary(build_tokenizer(), NUM_ROWS, [])


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL in small, with its real vocabulary."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are small: a second thread mostly waits
    model = build_model(SEED)
    losses = warm_up(model, SEED)
    torch.set_num_threads(threads)
    tempt(model)
    assert fmean(losses[-20:]) < 0.4, "it has not learnt to write calls"
    folder = tmp_path_factory.mktemp("qwen-vocabulary")
    save_checkpoint(model, folder)
    return folder


@pytest.fixture(scope="package")
def stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The processes of `medvr local`, on the second checkpoint; none is left behind."""
    paths = StackPaths(tmp_path_factory.mktemp("stack"))
    lines = CommandLines(paths, StackPorts(*free_ports(9)))
    policy = lines.policy(checkpoint, channel="policy:train", max_num_seqs=32, threads=1)
    mark = uuid.uuid4().hex
    try:
        with Supervisor(mark, paths.root / "logs") as supervisor:
            specs = (lines.valkey("everysec"), lines.zoom(), lines.cca(), policy)
            for spec in specs:
                supervisor.start(spec)
            wait_until_ready(supervisor, specs, Console(quiet=True), START_TIMEOUT_S)
            yield RunningStack(supervisor, lines, checkpoint)
    finally:
        end_stack(mark, grace_s=0)


@pytest.fixture(scope="package")
def attempts(stack: RunningStack) -> list[Attempts]:
    """Trajectories of several turns with crops, sampled by the first version."""
    return asyncio.run(play(stack))
