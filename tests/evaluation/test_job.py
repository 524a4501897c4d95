"""A whole evaluation: real zoom, cca and files; a policy whose turns are written here."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from services.evaluation.job import evaluate
from services.evaluation.records import EvaluationError, EvaluationFolder
from services.evaluation.report import EvaluationReport, render_table
from services.evaluation.runner import problem_seed
from services.evaluation.settings import EvaluationSettings
from shared.agent.episode import turn_seed
from shared.blobs import BlobStore
from shared.geometry import Box
from shared.problem import Problem, ProblemSetManifest, write_problem_set
from shared.render import encode_png
from tests.rollout.scripted_policy import ScriptedPolicy, Word, answer, look
from tests.rollout.stage import Stage, make_problem, set_stage

NUM_PROBLEMS = 4
LESION = Box(100, 100, 140, 140)  # centre (120, 120): (60, 60) in the view


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with set_stage(tmp_path / "blobs") as made:
        yield made


@pytest.fixture
def problem_set(stage: Stage, tmp_path: Path) -> Path:
    """Four problems about one image, each with the same lesion; the right answer is A."""
    problems = [make_problem(stage.problem.image, n) for n in range(NUM_PROBLEMS)]
    return written(tmp_path / "set", problems, with_lesions=True)


def written(folder: Path, problems: list[Problem], *, with_lesions: bool) -> Path:
    manifest = ProblemSetManifest(
        name=folder.name, num_problems=len(problems), seed=0, source="a test"
    )
    lesions = [(p.problem_id, LESION) for p in problems] if with_lesions else []
    write_problem_set(folder, manifest, problems, lesions)
    return folder


def rehearse(script: ScriptedPolicy, number: int, *turns: list[Word], seed: int = 0) -> None:
    for index, turn in enumerate(turns):
        script.scripts[turn_seed(problem_seed(seed, f"p{number}"), index)] = turn


@pytest.fixture
def script(stage: Stage) -> ScriptedPolicy:
    """A hit and right; a miss and right; a box too large and wrong; no zoom and right."""
    rehearse(stage.script, 0, look((40, 40, 80, 80)), answer("A"))
    rehearse(stage.script, 1, look((0, 0, 40, 40)), answer("A"))
    rehearse(stage.script, 2, look((20, 20, 120, 120)), answer("B"))
    rehearse(stage.script, 3, answer("A"))
    return stage.script


async def run(stage: Stage, settings: EvaluationSettings) -> EvaluationReport:
    services = stage.services
    return await evaluate(settings, services.policy, services.zoom, services.cca)


async def test_the_report_holds_what_the_policy_did(
    stage: Stage, script: ScriptedPolicy, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = await run(stage, EvaluationSettings(problem_set=problem_set, out=out, label="before"))

    metrics = report.metrics
    assert metrics.accuracy.mean == 0.75
    assert metrics.hit_rate is not None
    assert metrics.hit_rate.mean == 0.25
    # Only the first box and the large one meet the lesion of 40 x 40 px.
    assert metrics.iou is not None
    assert metrics.iou.mean == pytest.approx((1600 / 6400 + 0 + 1600 / 40000 + 0) / 4)
    assert metrics.box_area is not None
    assert metrics.box_area.mean == pytest.approx((6400 + 6400 + 40000) / 3 / 336**2)
    assert metrics.mean_zooms.mean == 0.75
    assert metrics.mean_turns.mean == 1.75
    assert metrics.answered.mean == metrics.well_formed.mean == 1.0
    assert report.policy_versions == [script.version]
    assert report.stop_reasons == {"answered": 4}
    assert all(request.temperature == 0 for request in script.requests)


@pytest.mark.usefixtures("script")
async def test_what_is_written_says_the_same(
    stage: Stage, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = await run(stage, EvaluationSettings(problem_set=problem_set, out=out, label="before"))

    assert json.loads((out / "report.json").read_bytes())["metrics"]["accuracy"] == list(
        report.metrics.accuracy
    )
    assert (out / "table.md").read_text() == render_table(report)
    assert "| Zoom hit rate | 25.0 % (" in render_table(report)
    records = EvaluationFolder(out).read()
    assert {r.problem_id for r in records} == {"p0", "p1", "p2", "p3"}
    first = next(r for r in records if r.problem_id == "p0")
    assert first.trajectory is not None
    assert first.trajectory.boxes == [Box(80, 80, 160, 160)]


@pytest.mark.usefixtures("script")
async def test_the_gallery_shows_lesion_and_box_where_they_are(
    stage: Stage, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await run(stage, EvaluationSettings(problem_set=problem_set, out=out, gallery=1))

    gallery = Image.open(out / "gallery.png").convert("RGB")
    green = _pixels_of(gallery, (0, 200, 83))
    orange = _pixels_of(gallery, (255, 145, 0))
    # The box is the lesion's square enlarged about the same centre: twice the side.
    for axis in (0, 1):
        lesion = [p[axis] for p in green]
        box = [p[axis] for p in orange]
        centre = (min(lesion) + max(lesion)) / 2
        assert (min(box) + max(box)) / 2 == pytest.approx(centre, abs=2)
        assert (max(box) - min(box)) / (max(lesion) - min(lesion)) == pytest.approx(2, abs=0.15)


def _pixels_of(image: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Where a pixel has nearly this colour."""
    width, height = image.size
    data = image.load()
    assert data is not None
    return [
        (x, y)
        for y in range(height)
        for x in range(width)
        if all(abs(c - d) < 40 for c, d in zip(data[x, y], colour, strict=True))  # pyright: ignore
    ]


async def test_running_again_does_only_what_is_missing(
    stage: Stage, script: ScriptedPolicy, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = EvaluationSettings(problem_set=problem_set, out=out)
    whole = await run(stage, settings)
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])  # killed in a write
    script.requests.clear()

    again = await run(stage, settings)

    torn = json.loads(lines[3])["trajectory"]
    assert len(script.requests) == len(torn["turns"])
    assert again.metrics == whole.metrics
    assert len(EvaluationFolder(out).read()) == NUM_PROBLEMS


async def test_another_configuration_is_refused_by_name(
    stage: Stage, script: ScriptedPolicy, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await run(stage, EvaluationSettings(problem_set=problem_set, out=out, label="before"))
    script.version += 1

    with pytest.raises(EvaluationError, match=r"version was 3, is 4.*--fresh"):
        await run(stage, EvaluationSettings(problem_set=problem_set, out=out, label="before"))

    fresh = EvaluationSettings(problem_set=problem_set, out=out, label="before", fresh=True)
    assert (await run(stage, fresh)).policy_versions == [4]


@pytest.mark.usefixtures("script")
async def test_without_known_lesions_the_hit_rate_is_unknown(stage: Stage, tmp_path: Path) -> None:
    problems = [make_problem(stage.problem.image, n) for n in range(2)]
    imported = written(tmp_path / "imported", problems, with_lesions=False)
    report = await run(stage, EvaluationSettings(problem_set=imported, out=tmp_path / "out"))
    assert report.metrics.hit_rate is None
    assert report.metrics.iou is None
    assert report.metrics.accuracy.mean == 1.0
    assert "| Zoom hit rate | — |" in render_table(report)


async def test_a_policy_away_for_a_moment_is_waited_for(
    stage: Stage, script: ScriptedPolicy, problem_set: Path, tmp_path: Path
) -> None:
    script.failures.extend([503, 503])
    settings = EvaluationSettings(problem_set=problem_set, out=tmp_path / "out", concurrency=1)
    report = await run(stage, settings)
    assert report.num_failed == 0
    assert report.metrics.accuracy.mean == 0.75


async def test_a_problem_that_is_refused_is_counted_as_failed_and_wrong(
    stage: Stage, script: ScriptedPolicy, problem_set: Path, tmp_path: Path
) -> None:
    script.failures.append(422)
    settings = EvaluationSettings(problem_set=problem_set, out=tmp_path / "out", concurrency=1)
    report = await run(stage, settings)
    assert report.num_failed == 1
    assert report.num_problems == NUM_PROBLEMS
    assert report.metrics.accuracy.mean == 0.5
    assert report.metrics.answered.mean == 0.75


async def test_an_image_that_cannot_be_shown_is_a_failed_problem_and_not_the_end(
    stage: Stage, tmp_path: Path
) -> None:
    rehearse(stage.script, 0, answer("A"))
    line = BlobStore(str(tmp_path / "blobs")).put(encode_png(Image.new("RGB", (300, 1))))
    problems = [make_problem(line, 9), make_problem(stage.problem.image, 0)]
    folder = written(tmp_path / "set", problems, with_lesions=False)
    out = tmp_path / "out"
    report = await run(stage, EvaluationSettings(problem_set=folder, out=out, gallery=0))
    assert (report.num_problems, report.num_failed) == (2, 1)
    assert report.metrics.accuracy.mean == 0.5
    (failed,) = [r for r in EvaluationFolder(out).read() if r.trajectory is None]
    assert failed.error is not None
    assert "300x1 px is too elongated to show" in failed.error


def test_flags_are_read_as_numbers(tmp_path: Path) -> None:
    flags = ["--problem-set", str(tmp_path), "--out", str(tmp_path), "--temperature", "1"]
    assert EvaluationSettings.load(flags).temperature == 1
    with pytest.raises(SystemExit):
        EvaluationSettings.load([*flags[:-1], "2"])


async def test_at_temperature_one_the_seed_decides(
    stage: Stage, problem_set: Path, tmp_path: Path
) -> None:
    def settings(name: str, seed: int) -> EvaluationSettings:
        return EvaluationSettings(
            problem_set=problem_set, out=tmp_path / name, temperature=1, seed=seed, gallery=0
        )

    await run(stage, settings("a", 1))
    await run(stage, settings("b", 1))
    await run(stage, settings("c", 2))

    def said(name: str) -> dict[str, list[str]]:
        records = EvaluationFolder(tmp_path / name).read()
        return {
            r.problem_id: [t.generation.text for t in r.trajectory.turns]
            for r in records
            if r.trajectory is not None
        }

    assert said("a") == said("b")
    assert said("a") != said("c")
