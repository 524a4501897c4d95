"""Every service can be installed alone: its extra names what it imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("services", "shared")
DISTRIBUTION_OF = {
    "PIL": "pillow",
    "dicomanonymizer": "dicom-anonymizer",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",
}
"""Where the name of the module is not that of what is installed, or another package brings it."""
BROUGHT_BY_VLLM = {"torch", "torchvision", "vllm"}
"""Of the policy's: which vLLM, and so which torch, depends on the machine."""


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", line)[0].lower() for line in requirements}


def imported_by(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needed_by(service: str) -> set[str]:
    """Distributions that the files of a service import; problem sets are read with pyarrow."""
    names = {n for path in (ROOT / "services" / service).rglob("*.py") for n in imported_by(path)}
    packages = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    needed = {DISTRIBUTION_OF.get(name, name.replace("_", "-")) for name in packages - set(OURS)}
    opens_problem_sets = any(
        re.fullmatch(r"shared\.problem\.(read_problems|read_lesions|write_problem_set)", name)
        for name in names
    )
    return needed | ({"pyarrow"} if opens_problem_sets else set())


@pytest.mark.parametrize(
    "service", sorted(p.parent.name for p in (ROOT / "services").glob("*/__main__.py"))
)
def test_a_service_imports_only_what_its_extra_installs(service: str) -> None:
    given = distributions(PROJECT["dependencies"])
    given |= distributions(PROJECT["optional-dependencies"][service])
    given |= BROUGHT_BY_VLLM if service == "policy" else set()
    assert needed_by(service) - given == set()
