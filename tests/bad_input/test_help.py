"""`--help` is answered at once: nothing that takes long to load is loaded for it."""

import subprocess
import sys

import pytest

from services.__main__ import COMMANDS
from tests.processes import ROOT, ended, environment

HEAVY = {
    "celery", "fastapi", "fsspec", "httpx", "matplotlib", "numpy", "PIL", "pyarrow", "pydicom",
    "redis", "rich", "sqlalchemy", "torch", "transformers", "uvicorn", "vllm",
}  # fmt: skip
LINES = [
    *COMMANDS,
    "local up",
    "local demo",
    "local status",
    "local down",
    "problems phantoms",
    "clinic export-feedback",
]
PROBE = """
import sys
sys.argv = ["medvr", *{line!r}.split(), "--help"]
from services.__main__ import main
try:
    main()
except SystemExit as end:
    sys.stderr.write(f"{{end.code}} {{sorted({heavy!r} & set(sys.modules))}}")
"""


@pytest.mark.parametrize("line", LINES)
def test_help_loads_nothing_heavy(line: str) -> None:
    code = PROBE.format(line=line, heavy=HEAVY)
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == "0 []"
    assert process.stdout.startswith("usage: medvr")


def test_help_lists_every_command() -> None:
    process = ended("--help")
    assert process.returncode == 0
    assert [name for name in COMMANDS if f"  {name} " not in process.stdout] == []
