"""The whole evaluation: open the folder, work on what is left, write the report and the plots."""

import logging
from pathlib import Path

from services.evaluation.plots import draw_bars, draw_gallery
from services.evaluation.progress import EvaluationProgress
from services.evaluation.records import (
    EvaluationConfig,
    EvaluationError,
    EvaluationFolder,
    EvaluationRecord,
)
from services.evaluation.report import EvaluationReport, make_report, write_report
from services.evaluation.runner import Agent, run_problems
from services.evaluation.settings import EvaluationSettings
from shared.agent.episode import EpisodeSettings
from shared.api.policy import PolicyDescription
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import Box
from shared.problem import Problem, read_lesions, read_manifest, read_problems

logger = logging.getLogger(__name__)


def _config(
    settings: EvaluationSettings, description: PolicyDescription, problems: list[Problem]
) -> EvaluationConfig:
    return EvaluationConfig(
        label=settings.label,
        problem_set=read_manifest(settings.problem_set),
        num_problems=len(problems),
        model=description.model,
        run=description.run,
        version=description.version,
        temperature=settings.temperature,
        seed=settings.seed,
        max_turns=settings.max_turns or description.max_turns,
        max_turn_tokens=settings.max_turn_tokens,
    )


def _known_lesions(folder: Path) -> dict[str, list[Box]]:
    """True boxes by problem id; empty for a set that has none (an imported benchmark)."""
    return read_lesions(folder) if (folder / "lesions.parquet").is_file() else {}


async def evaluate(
    settings: EvaluationSettings, policy: PolicyClient, zoom: ZoomClient, cca: CcaClient
) -> EvaluationReport:
    """Run or continue the evaluation and write its files. The caller closes the clients.

    Raises `EvaluationError` (another evaluation in the folder, an empty problem set),
    `ProblemSetError`, or the `BoundaryError` of a service that stayed down.
    """
    problems = read_problems(settings.problem_set)[: settings.limit]
    if not problems:
        raise EvaluationError(f"{settings.problem_set} has no problems to evaluate")
    settings.out.mkdir(parents=True, exist_ok=True)  # what cannot be is said before anyone is asked
    description = await policy.describe()
    config = _config(settings, description, problems)
    folder = EvaluationFolder(settings.out)
    if settings.fresh:
        folder.clear()
    folder.open(config)
    agent = Agent(
        policy=policy,
        zoom=zoom,
        cca=cca,
        description=description,
        episode=EpisodeSettings(
            max_turns=config.max_turns,
            max_turn_tokens=config.max_turn_tokens,
            temperature=float(config.temperature),
        ),
        seed=config.seed,
        patience_s=settings.patience_s,
    )
    records = await _finish_records(settings, folder, agent, problems)
    lesions = _known_lesions(settings.problem_set)
    report = make_report(config, records, lesions)
    write_report(folder.path, report)
    draw_bars(folder.path / "bars.png", report)
    if settings.gallery:
        await _write_gallery(settings, zoom, records, lesions)
    return report


async def _finish_records(
    settings: EvaluationSettings, folder: EvaluationFolder, agent: Agent, problems: list[Problem]
) -> list[EvaluationRecord]:
    """Work on the problems without a record; all records in the order of the problems."""
    records = {r.problem_id: r for r in folder.read()}
    left = [p for p in problems if p.problem_id not in records]
    title = f"{settings.problem_set.name}, {settings.label}"
    with EvaluationProgress(title, list(records.values()), len(problems)) as progress:

        def keep(record: EvaluationRecord) -> None:
            folder.append(record)
            records[record.problem_id] = record
            progress.add(record)

        await run_problems(agent, left, concurrency=settings.concurrency, on_record=keep)
    return [records[p.problem_id] for p in problems]


async def _write_gallery(
    settings: EvaluationSettings,
    zoom: ZoomClient,
    records: list[EvaluationRecord],
    lesions: dict[str, list[Box]],
) -> None:
    """The first examples of the set, not the best ones."""
    shown = records[: settings.gallery]
    examples = [(r, await zoom.image_bytes(r.image)) for r in shown]
    title = f"{settings.problem_set.name}, {settings.label}"
    draw_gallery(settings.out / "gallery.png", examples, lesions, title)
