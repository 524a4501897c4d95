"""What a user is told when the clinic runs is true."""

import io
import re
from pathlib import Path

import httpx
from rich.console import Console

from services.clinic.app import create_app
from services.clinic.settings import ClinicSettings
from services.local.greeting import greet
from services.local.processes import StackPaths
from shared.blobs import BlobStore
from shared.problem import ProblemSetManifest, write_problem_set
from tests.rollout.stage import make_problem, store_image


async def test_every_address_that_is_printed_is_served(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    problem = make_problem(store_image(BlobStore(str(paths.blobs))))
    manifest = ProblemSetManifest(name="set", num_problems=1, seed=0, source="a test")
    write_problem_set(tmp_path / "set", manifest, [problem])
    said = io.StringIO()
    greet(Console(file=said, width=200), "http://clinic", paths, tmp_path / "set")
    addresses = set(re.findall(r"http://clinic[^\s)]*", said.getvalue()))
    assert "http://clinic/v1/cases" in addresses

    app = create_app(ClinicSettings(database=tmp_path / "cases.db"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        api = (await client.get("http://clinic/openapi.json")).json()
        for address in addresses - {f"http://clinic{path}" for path in api["paths"]}:
            assert (await client.get(address)).status_code == 200, address
