"""The policy of two tools, served by vLLM, on CT phantoms that its first window hides.

Shares over few phantoms are coarse; `python -m benchmarks.windowing` measures them properly.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx

from services.problems.ingest import ingest_phantoms
from services.problems.phantoms import WINDOWED, render_phantoms
from services.rollout.group import trajectory_seed
from services.zoom.app import create_app
from services.zoom.settings import ZoomSettings
from shared.agent.environment import open_problem
from shared.agent.episode import CallMade, EpisodeSettings, run_episode
from shared.agent.opened import OpenedProblem
from shared.api.policy import EntropyRequest, PolicyDescription
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.hits import is_hit
from shared.problem import Problem
from shared.trajectory import Trajectory
from tests.fixtures_policy import run_policy_server

WINDOWING = Path(__file__).parents[2] / "services/trainer/tiny/windowing"
NUM_PHANTOMS = 24
GREEDY = EpisodeSettings(max_turns=5, max_turn_tokens=128, temperature=0.0)


async def opened_of(
    zoom: ZoomClient, description: PolicyDescription, problem: Problem
) -> OpenedProblem:
    return await open_problem(
        zoom,
        description,
        image=problem.image,
        question=problem.question,
        options=problem.options,
    )


async def test_it_sets_a_window_zooms_in_it_and_reads_what_nobody_sees_before(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with run_policy_server(WINDOWING, tmp_path, free_port()) as running:
        app = create_app(ZoomSettings(blob_url=running.blob_url))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://zoom")
        policy = PolicyClient(running.url)
        async with app.router.lifespan_context(app), http:
            zoom = ZoomClient("http://zoom", http)
            description = await policy.describe()
            assert description.tools == ["zoom_in", "set_window"]
            phantoms = render_phantoms(WINDOWED, 1, NUM_PHANTOMS)
            problems, lesions = await ingest_phantoms(phantoms, zoom, lambda _: None)
            calls: list[CallMade] = []

            async def play(problem: Problem) -> Trajectory:
                return await run_episode(
                    policy,
                    zoom,
                    await opened_of(zoom, description, problem),
                    trajectory_id=problem.problem_id,
                    seed=trajectory_seed(problem.problem_id),
                    settings=GREEDY,
                    on_call=calls.append,
                )

            played = await asyncio.gather(*(play(problem) for problem in problems))
            opened = await opened_of(zoom, description, problems[0])
            first = played[0].turns[0].generation.token_ids
            request = EntropyRequest(segments=opened.prompt_segments, continuation=first)
            scored = await policy.entropy(request)
        await policy.aclose()

    firsts = [t.turns[0].call for t in played]
    shown = [c for c in firsts if c is not None and c.tool == "set_window" and c.crop is not None]
    assert len(shown) >= 0.9 * NUM_PHANTOMS
    assert all(call.box is None and call.window is not None for call in shown)
    zoomed = [t for t in played if t.boxes]
    assert len(zoomed) >= 0.9 * NUM_PHANTOMS
    seen = [
        c.window for t in zoomed for turn in t.turns if (c := turn.call) and c.tool == "zoom_in"
    ]
    assert sum(window is not None for window in seen) >= 0.9 * len(seen), "in the window it set"
    size = problems[0].image_size
    hits = [is_hit(t.boxes, [box], size) for t, (_, box) in zip(played, lesions, strict=True)]
    right = [t.answer == p.gold_answer for t, p in zip(played, problems, strict=True)]
    read = [ok for ok, hit in zip(right, hits, strict=True) if hit]
    assert sum(hits) >= 5, "chance finds one of nine at most"
    assert sum(read) >= 0.8 * len(read), "whoever finds the lesion reads it; chance is one of six"
    made = next(call for call in calls if call.trajectory_id == problems[0].problem_id)
    assert scored.tool_entropy_nats is not None
    assert abs(scored.tool_entropy_nats - made.tool_entropy_nats) < 1e-3
    assert abs(scored.baseline_entropy_nats - made.prefix.baseline_entropy_nats) < 1e-3
