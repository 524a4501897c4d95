"""The whole system once, small and real: trained, interrupted, resumed, served, stopped.

vLLM, Celery, Valkey, torch, the clinic: nothing is replaced. It learns nothing in three steps;
what is looked at is that the parts agree on what happened.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.local.demo_settings import DemoPlan, quick
from services.local.leftovers import end_stack, stack_processes
from services.local.settings import TINY
from services.local.state import StackFolder, StackState
from shared.weights import read_policy_manifest

PLAN = quick(DemoPlan())
PATIENCE_S = 600.0


class DemoProcess:
    """`medvr local demo --quick` in a process of its own, its output in a file."""

    def __init__(self, folder: Path, port: int, *flags: str) -> None:
        self.folder = StackFolder(folder)
        self.log = folder.parent / f"demo{'-'.join(('', *flags)).replace('--', '')}.log"
        command = [sys.executable, "-m", "services", "local", "demo", "--quick", *flags]
        command += ["--folder", str(folder), "--clinic-port", str(port)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.stack_id = self.until(self.folder.read).stack_id

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, look: Callable[[], StackState | re.Match[str] | bool | None]) -> Any:
        """What `look` gives once it gives something; the log if the demo ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not (seen := look()):
            assert self.process.poll() is None, f"the demo ended:\n{self.text}"
            assert time.monotonic() < deadline, f"too slow:\n{self.text}"
            time.sleep(0.2)
        return seen

    def interrupt(self) -> int:
        """Ctrl-C; its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        end_stack(self.stack_id, grace_s=0)


Start = Callable[..., DemoProcess]


@pytest.fixture
def start(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Start]:
    started: list[DemoProcess] = []

    def begin(*flags: str) -> DemoProcess:
        started.append(DemoProcess(tmp_path / "stack", free_port(), *flags))
        return started[-1]

    yield begin
    for demo in started:
        demo.end()


def lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(x) for x in path.read_bytes().splitlines(keepends=True) if x[-1:] == b"\n"]


@pytest.mark.timeout(1800)
def test_a_demo_interrupted_in_training_is_resumed_to_the_end(start: Start) -> None:
    first = start()
    root = first.folder.root
    run = root / "runs" / "demo-medvr"
    first.until(lambda: bool(lines_of(run / "steps.jsonl")))
    assert first.interrupt() == 130
    assert "--resume continues" in first.text
    assert stack_processes(first.stack_id) == []
    num_steps_before = len(lines_of(run / "steps.jsonl"))
    assert num_steps_before < PLAN.trainer.max_steps

    second = start("--resume")
    url = second.until(lambda: re.search(r"Clinic: (http://\S+)", second.text)).group(1)
    assert "before training: brain: done before" in second.text

    check_training(run, root)
    check_report(root)
    check_case(url, root)
    check_shipped(root)

    assert second.interrupt() == 0
    assert stack_processes(second.stack_id) == []
    assert second.folder.read() is None


def check_training(run: Path, root: Path) -> None:
    """Each step once; every group one fate; what was trained is what the steps say."""
    steps = lines_of(run / "steps.jsonl")
    assert [step["step"] for step in steps] == list(range(1, PLAN.trainer.max_steps + 1))
    outcome = json.loads((root / "demo" / "training-medvr.json").read_bytes())
    assert sum(outcome["fates"].values()) == outcome["cursor"] > 0
    trained = PLAN.trainer.max_steps * PLAN.trainer.groups_per_step
    assert outcome["fates"]["trained"] == trained
    assert outcome["fates"].get("dead", 0) == 0
    assert outcome["final_version"]["version"] == PLAN.trainer.max_steps
    assert all(step["trajectories_trained"] for step in steps)
    assert max(step["mismatch_kl"] for step in steps) < 0.01
    looked = lines_of(run / "boxes.jsonl")
    assert {len(group["boxes"]) for group in looked} == {PLAN.rollout.group_size}


def check_report(root: Path) -> None:
    """Real values, in the form of `services.local.demo_report`."""
    report = json.loads((root / "demo" / "report.json").read_bytes())
    assert report["steps"] == PLAN.trainer.max_steps
    assert report["seconds"] > 10
    assert len(report["revision"]) >= 7
    for test_set in ("brain", "retina", "ct"):
        moments = report["arms"]["medvr"][test_set]
        assert list(moments) == ["before", "after"]
        for measured in moments.values():
            for name in ("accuracy", "hit_rate", "mean_zooms"):
                mean, low, high = measured[name]
                assert 0 <= low <= mean <= high
            assert measured["accuracy"][0] * PLAN.num_test_problems % 1 == 0
    assert "| medvr | brain | after |" in (root / "demo" / "table.md").read_text()
    assert (root / "demo" / "curves-medvr.png").read_bytes().startswith(b"\x89PNG")
    before = root / "demo" / "evaluations" / "brain-before"
    after = root / "demo" / "evaluations" / "brain-after-medvr"
    assert json.loads((before / "report.json").read_bytes())["policy_versions"] == [0]
    assert json.loads((after / "report.json").read_bytes())["policy_versions"] == [
        PLAN.trainer.max_steps
    ]


def check_case(url: str, root: Path) -> None:
    """The clinic answers about the phantom it names, with the trained version."""
    form = {"question": "Which pattern fills the lesion?", "choices": ["plain", "rows"], "k": "3"}
    image = (root / "example-brain.png").read_bytes()
    answer = httpx.post(
        f"{url}/v1/cases", data=form, files={"image": image}, timeout=120, trust_env=False
    )
    assert answer.status_code == 201
    case = answer.json()
    assert case["policy"]["versions"] == [PLAN.trainer.max_steps]
    assert case["policy"]["run"] == "demo-medvr"
    assert case["status"] in {"answered", "abstained"}


def check_shipped(root: Path) -> None:
    """The shipped policy has the final version's weights and says what was measured of them."""
    out = root.parent / "shipped"
    command = [sys.executable, "-m", "services", "local", "ship", "--folder", str(root)]
    subprocess.run([*command, "--out", str(out)], check=True)
    report = json.loads((root / "demo" / "report.json").read_bytes())
    final = Path(report["training"]["medvr"]["outcome"]["final_version"]["path"])
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (final / weights).read_bytes()
    made_by = read_policy_manifest(out).made_by
    assert made_by["steps"] == PLAN.trainer.max_steps
    accuracy = report["arms"]["medvr"]["brain"]["after"]["accuracy"][0]
    assert made_by["metrics"]["brain"]["after"]["accuracy"] == round(accuracy, 4)
    assert made_by["started_from"] == read_policy_manifest(TINY / "base").made_by


def test_shipping_without_a_finished_demo_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services", "local", "ship", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no finished demo" in done.stderr
    assert not (tmp_path / "out").exists()


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services", "local", "demo", "--resume"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "nothing to resume" in done.stderr
    assert StackFolder(tmp_path).read() is None
