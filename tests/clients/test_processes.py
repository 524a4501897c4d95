"""zoom and cca as processes: started as users start them, spoken to over loopback, stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from shared.api.cca import ScoredAttempt, ScoreRequest
from shared.api.zoom import CropRequest, PixelLimitsModel, WireImageSize
from shared.clients.cca import CcaClient
from shared.clients.zoom import ZoomClient
from shared.problem import AnswerKind

START_TIMEOUT_S = 120


class Process:
    """A running service and what it printed."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.url = url
        self.process = process
        self._log = log

    def stop(self) -> list[dict[str, object]]:
        """SIGTERM; returns the log once it ended by that and left no child behind."""
        children = children_of(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) in (0, -signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline, "a child outlived the service"
            time.sleep(0.05)
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


@pytest.fixture
def service(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[..., Process]]:
    """`service("zoom", "--blob-url", …)` starts `python -m services zoom …` and waits for it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *flags: str) -> Process:
        port = free_port()
        log = tmp_path / f"{name}.log"
        command = [sys.executable, "-m", "services", name, "--port", str(port), *flags]
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stderr=stderr, cwd=Path(__file__).parents[2])
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        return Process(url, process, log)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended while starting"
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} is not ready after {START_TIMEOUT_S} s")


async def test_zoom_serves_over_loopback_and_stops_on_sigterm(
    service: Callable[..., Process], tmp_path: Path
) -> None:
    zoom_process = service("zoom", "--blob-url", str(tmp_path / "blobs"))
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (10, 20, 30)).save(buffer, "PNG")
    zoom = ZoomClient(zoom_process.url)
    original = await zoom.ingest(buffer.getvalue())
    limits = PixelLimitsModel(min_pixels=784, max_pixels=784)
    crop = await zoom.crop(CropRequest(image=original.image, box=[0, 0, 28, 28], limits=limits))
    with Image.open(io.BytesIO(await zoom.crop_bytes(crop.crop))) as shown:
        assert shown.size == (28, 28)
        assert shown.getpixel((5, 5)) == (10, 20, 30)
    await zoom.aclose()
    log = zoom_process.stop()
    assert log[-1]["service"] == "zoom"
    assert any("shutdown complete" in str(line["message"]) for line in log)


async def test_cca_serves_over_loopback_and_stops_on_sigterm(
    service: Callable[..., Process],
) -> None:
    cca_process = service("cca")
    cca = CcaClient(cca_process.url)
    response = await cca.score(
        ScoreRequest(
            gold_answer="yes",
            answer_kind=AnswerKind.YES_NO,
            image_size=WireImageSize(width_px=10, height_px=10),
            attempts=[
                ScoredAttempt(
                    trajectory_id="t",
                    answer="yes",
                    is_well_formed=True,
                    all_calls_parsed=True,
                )
            ],
        )
    )
    assert response.rewards[0].total == 1.0
    await cca.aclose()
    log = cca_process.stop()
    assert any("shutdown complete" in str(line["message"]) for line in log)
    assert "yes" not in json.dumps(log)


@pytest.mark.parametrize("name", ["zoom", "cca"])
def test_a_misspelt_variable_stops_the_process_with_the_accepted_ones(name: str) -> None:
    variable = f"MEDVR_{name.upper()}_PROT"
    ended = subprocess.run(
        [sys.executable, "-m", "services", name],
        env={**os.environ, variable: "1"},
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 2
    assert variable in ended.stderr
    assert f"MEDVR_{name.upper()}_PORT" in ended.stderr
