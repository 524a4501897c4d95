"""docs/client.md: every example runs, and prints what the page says."""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.clients.clinic import ClinicClient
from tests.clinic.conftest import Surroundings
from tests.clinic.jobs import WorkerProcess
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import answer, look
from tests.clinic.test_cases import IN_VIEW
from tests.processes import ROOT, environment

PAGE = ROOT / "docs" / "client.md"
CLINIC, CASE_ID = "http://127.0.0.1:8080", "5f0c1f5a6c1b4c0f9a3d2b1e8f7a6c5d"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of the page and the block of text that follows it, if one does."""

    language: str
    code: str
    prints: str


def examples(page: str) -> Iterator[Example]:
    blocks = _BLOCK.findall(page)
    for (language, code), after in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "text":
            yield Example(language, code, after[1] if after[0] == "text" else "")


def run_python(code: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), names)
    return printed.getvalue()


@pytest.fixture
def run_shell(surroundings: Surroundings, tmp_path: Path) -> Callable[[str], str]:
    """A shell that has this `medvr`, on the machine of the clinic."""
    command = tmp_path / "bin" / "medvr"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m services "$@"\n')
    command.chmod(0o755)
    variables = environment(
        PYTHONPATH=str(ROOT),
        PATH=f"{command.parent}:{os.environ['PATH']}",
        MEDVR_CLINIC_DATABASE=str(tmp_path / "clinic.sqlite"),
        MEDVR_CLINIC_BLOB_URL=surroundings.blob_url,
    )

    def run(code: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def newest_case(url: str) -> str:
    with ClinicClient(url) as client:
        return next(client.pages(limit=1)).cases[0].case_id


@pytest.fixture
def url(
    start_clinic: Callable[..., httpx.Client],
    valkey_url: str,
    free_port: Callable[[], int],
    tmp_path: Path,
) -> Iterator[str]:
    """Of a clinic with a worker."""
    url = str(start_clinic(redis_url=valkey_url).base_url).rstrip("/")
    worker = WorkerProcess(valkey_url, url, free_port(), tmp_path / "worker.log")
    worker.start()
    yield url
    worker.close()


def test_every_example_prints_what_the_page_says(
    url: str,
    surroundings: Surroundings,
    run_shell: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    surroundings.policy.rehearse([look(IN_VIEW), answer("B")])
    (tmp_path / "scan.png").write_bytes(png(picture()))
    (tmp_path / "other.png").write_bytes(png(picture().rotate(90)))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    found = list(examples(PAGE.read_text()))

    for example in found:
        code = example.code.replace(CLINIC, url)
        if CASE_ID in code:
            code = code.replace(CASE_ID, newest_case(url))
        printed = run_python(code, names) if example.language == "python" else run_shell(code)
        printed = re.sub(r"\b[0-9a-f]{32}\b", CASE_ID, printed.replace(url, CLINIC))
        assert printed == example.prints, example.code

    assert {example.language for example in found} == {"python", "sh"}
    assert len(found) >= 10
    assert (tmp_path / "crop-1.png").is_file()
