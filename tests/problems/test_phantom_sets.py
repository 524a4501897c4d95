"""Phantom sets go in through a real zoom app; the truth stays out of the problems."""

from pathlib import Path

import httpx

from services.problems.ingest import write_phantom_set
from services.problems.phantoms import KINDS, QUESTION, render_phantoms
from services.zoom.app import create_app
from services.zoom.settings import ZoomSettings
from shared.clients.zoom import ZoomClient
from shared.problem import AnswerKind, read_lesions, read_manifest, read_problems


async def test_a_phantom_set_is_ingested_and_its_truth_kept_apart(tmp_path: Path) -> None:
    app = create_app(ZoomSettings(blob_url=str(tmp_path / "blobs")))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://zoom")
    phantoms = list(render_phantoms("retina", 1, 3))
    folder = tmp_path / "retina-test"
    async with app.router.lifespan_context(app), http:
        zoom = ZoomClient("http://zoom", http)
        assert (
            await write_phantom_set(folder, phantoms, zoom, num_phantoms=3, seed=1, source="test")
            == 3
        )
        for problem in read_problems(folder):
            facts = await zoom.facts(problem.image)
            assert (facts.width_px, facts.height_px, facts.mode) == (336, 336, "RGB")
    assert read_manifest(folder).num_problems == 3
    problems = read_problems(folder)
    assert [p.gold_answer for p in problems] == [p.gold_answer for p in phantoms]
    assert {p.answer_kind for p in problems} == {AnswerKind.CHOICE}
    assert {(p.question, p.options) for p in problems} == {(QUESTION, KINDS)}
    assert read_lesions(folder) == {p.problem_id: [p.box] for p in phantoms}
