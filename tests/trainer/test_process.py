"""The trainer as a process: killed at the worst moments, stopped by SIGTERM, refused settings."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
import torch

from services.trainer.checkpoint import CheckpointStore
from services.trainer.settings import TrainerSettings
from shared.stream import Fate, RunState, RunStream
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import feed, flags, open_stream, run_settings, steps_of, train

ROOT = Path(__file__).resolve().parents[2]

NUM_GROUPS = 7
"""Three steps of two, and one left over."""


def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def final_state(settings: TrainerSettings) -> dict[str, torch.Tensor]:
    store = CheckpointStore(settings.run_folder / "checkpoints", 9)
    found = store.newest()
    assert found is not None
    assert found[0].step == settings.max_steps
    return store.load_state(found[1])["policy"]


def test_killed_mid_step_before_settling_and_before_publishing_it_trains_each_group_once(
    tmp_path: Path,
    checkpoint: Path,
    blob_url: str,
    valkey: redis.Redis,
    valkey_url: str,
    builder: GroupBuilder,
    free_port: Callable[[], int],
) -> None:
    port = free_port()

    def settings_of(run: str) -> TrainerSettings:
        return run_settings(
            tmp_path,
            checkpoint=checkpoint,
            blob_url=blob_url,
            redis_url=valkey_url,
            run=run,
            max_steps=3,
            probe_port=port,
        )

    streams: dict[str, RunStream] = {}
    for run in ("whole", "torn"):
        own = GroupBuilder(builder.tokenizer, builder.blobs, run=run)
        streams[run] = open_stream(valkey, run, *(own.group(s) for s in range(NUM_GROUPS)))
    whole, torn = settings_of("whole"), settings_of("torn")
    train(whole)

    moments = {
        "step": Path("/nonexistent"),
        "settle": torn.run_folder / "checkpoints" / "000001",
        "announce": torn.weights_root / "torn" / "000002",
    }
    stream = streams["torn"]
    fates_after: dict[str, set[str]] = {}
    for moment, path in moments.items():
        process = run_process("tests.trainer.killed_trainer", moment, str(path), *flags(torn))
        assert process.returncode == -signal.SIGKILL, process.stderr
        fates_after[moment] = set(stream.fates())
    assert fates_after == {
        "step": set(),
        "settle": set(),  # the checkpoint was durable, its groups were not yet settled
        "announce": {f"torn:0:p{s}" for s in range(4)},
    }
    last = run_process("services", "trainer", *flags(torn))
    assert last.returncode == 0, last.stderr

    expected = {f"torn:0:p{s}": Fate.TRAINED for s in range(6)} | {"torn:0:p6": Fate.SURPLUS}
    assert stream.fates() == expected
    assert (stream.cursor(), stream.outstanding()) == (NUM_GROUPS, 0)
    assert stream.state() is RunState.FINISHED
    assert [s["step"] for s in steps_of(torn)] == [1, 2, 3]
    ours, theirs = final_state(torn), final_state(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(p.name for p in (torn.weights_root / "torn").iterdir()) == [
        f"{version:06d}" for version in range(4)
    ]


def test_sigterm_ends_a_waiting_trainer_cleanly_and_its_probes_answer_before(
    tmp_path: Path,
    checkpoint: Path,
    blob_url: str,
    valkey: redis.Redis,
    valkey_url: str,
    builder: GroupBuilder,
    free_port: Callable[[], int],
) -> None:
    port = free_port()
    settings = run_settings(
        tmp_path, checkpoint=checkpoint, blob_url=blob_url, redis_url=valkey_url, probe_port=port
    )
    stream = open_stream(valkey, "run", *(builder.group(s) for s in range(3)))
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "services", "trainer", *flags(settings)], stderr=log, cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 200
        while len(stream.fates()) < 2:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json() == {"status": "alive"}
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        assert "medvr_trainer_step 1.0" in httpx.get(f"{url}/metrics").text
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        log.close()
    assert '"stopped at step 1"' in (tmp_path / "log").read_text()
    assert stream.state() is RunState.RUNNING
    assert [e.group_id for e in stream.read_pending()] == ["run:0:p2"]
    feed(stream, builder.group(3))
    train(settings)
    assert {g: f.value for g, f in stream.fates().items()} == {
        f"run:0:p{s}": "trained" for s in range(4)
    }


def test_help_lists_the_settings_and_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from services.trainer.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "--max-off-policy-steps" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "x"], "run: Field required"),
        (["--model", "x", "--run", "a/b"], "run: String should match pattern"),
        (
            ["--model", "x", "--run", "r", "--checkpoint-every", "2", "--publish-every", "3"],
            "publish_every 3 must be a multiple of checkpoint_every 2",
        ),
        (["--model", "x", "--run", "r", "--clip-low", "1.5"], "clip_low: Input should be less"),
    ],
)
def test_wrong_settings_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from services.trainer.__main__ import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_flow_settings_that_contradict_each_other_end_the_process() -> None:
    process = run_process(
        "services", "trainer", "--model", "x", "--run", "r", "--max-outstanding", "500"
    )
    assert process.returncode == 2
    assert "error: max_outstanding is 500, but must lie between 8" in process.stderr
