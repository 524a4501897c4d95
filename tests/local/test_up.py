"""`medvr local up`: the shipped policy answers the case that is printed, and Ctrl-C ends it all."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from services.local.leftovers import end_stack, stack_processes
from services.local.settings import TINY
from services.local.state import StackFolder
from shared.weights import read_policy_manifest

PATIENCE_S = 600.0


@pytest.mark.timeout(900)
def test_the_shipped_policy_answers_the_case_that_is_printed(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    folder, log = StackFolder(tmp_path / "stack"), tmp_path / "up.log"
    command = [sys.executable, "-m", "services", "local", "up", "--folder", str(folder.root)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--clinic-port", str(free_port())], stdout=output, stderr=output
        )
    stack_id = ""
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ctrl-C stops" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            stack_id = state.stack_id if (state := folder.read()) else stack_id
            time.sleep(0.2)
        said = log.read_text()
        url = re.search(r"Clinic: (http://\S+)", said)
        right = re.search(r"the right answer is ([A-F])", said)
        assert url is not None
        assert right is not None
        answer = httpx.post(
            f"{url[1]}/v1/cases",
            data={"question": "Which pattern fills the lesion?", "choices": ["plain", "rows"]},
            files={"image": (folder.root / "example-brain.png").read_bytes()},
            timeout=120,
            trust_env=False,
        )
        assert answer.status_code == 201
        assert answer.json()["policy"]["versions"] == [0]
        assert answer.json()["calibration"]["problem_set"] == "brain-calibration"
        assert answer.json()["confidence_unknown"] in (None, "not_answered")
        job = httpx.post(
            f"{url[1]}/v1/jobs",
            data={"question": "Which pattern fills the lesion?", "choices": ["plain", "rows"]},
            files=[("images", (folder.root / "example-brain.png").read_bytes())] * 2,
            timeout=120,
            trust_env=False,
        ).json()
        while job["status"] == "running":
            assert time.monotonic() < deadline, job["counts"]
            time.sleep(0.2)
            job = httpx.get(f"{url[1]}{job['url']}", trust_env=False).json()
        assert (job["status"], job["counts"]["done"]) == ("done", 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert stack_processes(stack_id) == []
    finally:
        process.kill()
        process.wait()
        end_stack(stack_id, grace_s=0)


def test_the_shipped_policy_was_trained_by_the_method_and_says_how() -> None:
    made_by = read_policy_manifest(TINY / "trained").made_by
    assert made_by["arm"] == "medvr"
    before, after = (made_by["metrics"]["brain"][moment] for moment in ("before", "after"))
    assert after["accuracy"] >= 0.85 > before["accuracy"]
    assert after["hit_rate"] >= 0.8 > before["hit_rate"]
    assert made_by["started_from"] == read_policy_manifest(TINY / "base").made_by
