"""The clinic as a process: killed in the middle of a case, stopped cleanly, started wrongly."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clinic.conftest import Surroundings
from tests.clinic.scripted_policy import ScriptedPolicy, answer
from tests.clinic.test_cases import ask

START_S = 60.0


class ClinicProcess:
    """`python -m services clinic` over one database, started and ended any number of times."""

    def __init__(self, surroundings: Surroundings, database: Path, port: int, *flags: str) -> None:
        self._command = [
            *(sys.executable, "-m", "services", "clinic"),
            *("--port", str(port), "--database", str(database)),
            *("--blob-url", surroundings.blob_url, "--zoom-url", surroundings.zoom_url),
            *("--cca-url", surroundings.cca_url, "--policy-url", surroundings.policy.url),
            *flags,
        ]
        url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.process.communicate()[1].decode()
            assert time.monotonic() < deadline, "the clinic did not start"
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)

    def end(self, how: signal.Signals) -> str:
        """Send a signal, wait; returns what was logged."""
        assert self.process is not None
        self.process.send_signal(how)
        _, logged = self.process.communicate(timeout=30)
        self.process = None
        return logged.decode()

    def close(self) -> None:
        self.client.close()
        if self.process is not None:
            self.end(signal.SIGKILL)


@pytest.fixture
def process(
    surroundings: Surroundings, tmp_path: Path, free_port: Callable[[], int]
) -> Iterator[ClinicProcess]:
    process = ClinicProcess(surroundings, tmp_path / "clinic.sqlite", free_port())
    process.start()
    yield process
    process.close()


def ask_and_leave(process: ClinicProcess, policy: ScriptedPolicy) -> threading.Thread:
    """Ask in a thread whose connection will break; returns once the policy was asked."""

    def asking() -> None:
        try:
            ask(process.client, k="1")
        except httpx.TransportError:
            return

    policy.release.clear()
    policy.entered.clear()
    thread = threading.Thread(target=asking)
    thread.start()
    assert policy.entered.wait(timeout=30)
    return thread


def final_case(process: ClinicProcess) -> dict[str, Any]:
    [line] = process.client.get("/v1/cases").json()["cases"]
    for _ in range(300):
        case: dict[str, Any] = process.client.get(line["url"]).json()
        if case["status"] != "running":
            return case
        time.sleep(0.1)
    pytest.fail("the case stayed running")


def test_a_case_whose_process_was_killed_is_answered_by_the_next(
    process: ClinicProcess, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    thread = ask_and_leave(process, policy)
    process.end(signal.SIGKILL)
    thread.join(timeout=30)

    policy.release.set()
    process.start()
    case = final_case(process)

    assert (case["status"], case["answer"], case["option_text"]) == ("answered", "A", "ring")


def test_a_case_whose_process_was_killed_twice_fails_with_that_reason(
    process: ClinicProcess, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    thread = ask_and_leave(process, policy)
    process.end(signal.SIGKILL)
    thread.join(timeout=30)
    policy.entered.clear()
    process.start()
    assert policy.entered.wait(timeout=30)
    process.end(signal.SIGKILL)

    policy.release.set()
    asked_before = policy.num_entered
    process.start()
    case = final_case(process)

    assert case["status"] == "failed"
    assert case["failure"]["reason"] == (
        "the work on this case was cut short 2 times: "
        "the clinic was killed, or its database stayed away"
    )
    assert policy.num_entered == asked_before


def test_a_clean_stop_does_not_count_as_a_kill(process: ClinicProcess, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    thread = ask_and_leave(process, policy)
    for _ in range(3):
        process.end(signal.SIGTERM)
        policy.entered.clear()
        process.start()
        assert policy.entered.wait(timeout=30)
    thread.join(timeout=30)

    policy.release.set()

    assert final_case(process)["status"] == "answered"


def test_what_a_process_logs_holds_no_word_of_a_case(
    process: ClinicProcess, policy: ScriptedPolicy
):
    policy.rehearse([answer("zebrafinch")])
    ask(process.client, k="1", question="Is it a zebrafinch?", choices=None)
    policy.fail_with = 400
    ask(process.client, k="1", question="Is it a zebrafinch?", choices=None)

    logged = process.end(signal.SIGTERM)

    assert '"case ended"' in logged
    assert '"case failed"' in logged
    assert "zebrafinch" not in logged


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--default-k", "17"], "less than or equal to 16"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_a_wrong_setting_stops_the_process_with_a_sentence(flags: list[str], said: str):
    command = [sys.executable, "-m", "services", "clinic", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
