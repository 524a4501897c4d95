"""`medvr clinic calibrate`: the clinic's own casework over problems whose answers are known.

Lifecycle: open the folder, work on the problems without a record, fit, write. Every problem is a
line on disk once it is done, so the same command continues after any end. A policy that is
swapped meanwhile ends the calibration: a confidence belongs to one set of weights.
"""

import asyncio
import hashlib
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from services.clinic.calibrate_settings import CalibrateSettings
from services.clinic.calibration_plots import draw_reliability, draw_risk_coverage
from services.clinic.calibrator import CalibrationRecord, Calibrator
from services.clinic.confidence import Calibration, CalibrationError, HeldOut, confidence_of
from services.clinic.fitting import (
    Answered,
    Bin,
    RiskAt,
    brier_score,
    expected_calibration_error,
    fit,
    held_out_images,
    reliability,
    risk_coverage,
)
from services.clinic.provenance import prompt_sha256
from services.clinic.rounds import Neighbours
from shared.api.policy import PolicyDescription
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.problem import Problem, ProblemSetManifest, read_manifest, read_problems
from shared.progress import progress
from shared.records import RecordFolder

_WRITTEN = ("calibration.json", "report.json", "reliability.png", "risk_coverage.png")


class CalibrationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the records of one calibration share."""

    problem_set: ProblemSetManifest
    problem_set_sha256: str
    """Of the problems themselves, not of their file."""
    num_problems: int
    model: str
    run: str
    version: int
    weights_sha256: str
    prompt_sha256: str
    num_trajectories: int
    max_turn_tokens: int
    seed: int


class Judged(msgspec.Struct, frozen=True):
    """Held-out problems, judged in both ways."""

    num_problems: int
    before: list[float]
    after: list[float]
    is_right: list[bool]

    @property
    def figures(self) -> HeldOut:
        """As the calibration carries them."""
        num_answered = len(self.is_right)
        return HeldOut(
            num_problems=self.num_problems,
            num_answered=num_answered,
            accuracy=sum(self.is_right) / num_answered if num_answered else 0.0,
            ece_before=expected_calibration_error(self.before, self.is_right),
            ece_after=expected_calibration_error(self.after, self.is_right),
            brier_before=brier_score(self.before, self.is_right),
            brier_after=brier_score(self.after, self.is_right),
        )


class CalibrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`, of held-out problems: before is the raw agreement, after the confidence."""

    config: CalibrationConfig
    num_failed: int
    """Problems of the whole set that could not be worked; they count as unanswered."""
    reliability_before: list[Bin]
    reliability_after: list[Bin]
    risk_coverage_before: list[RiskAt]
    risk_coverage_after: list[RiskAt]


def problems_sha256(problems: Sequence[Problem]) -> str:
    """Digest of a problem set by what is in it."""
    return hashlib.sha256(msgspec.json.encode(problems)).hexdigest()


def fitted(
    config: CalibrationConfig, records: Sequence[CalibrationRecord], *, held_out: float
) -> tuple[Calibration, Judged]:
    """The calibration of the records, and how it did on those held out.

    Raises `CalibrationError` if there is too little to fit on.
    """
    kept_back = held_out_images([r.image for r in records], held_out, config.seed)
    answered = [
        Answered(r.image, r.features, r.is_right) for r in records if r.features is not None
    ]
    to_fit = [a for a in answered if a.image not in kept_back]
    to_judge = [a for a in answered if a.image in kept_back]
    curve = fit(to_fit)
    draft = Calibration(
        problem_set=config.problem_set.name,
        problem_set_sha256=config.problem_set_sha256,
        num_problems=config.num_problems,
        num_fitted=len(to_fit),
        model=config.model,
        run=config.run,
        version=config.version,
        weights_sha256=config.weights_sha256,
        prompt_sha256=config.prompt_sha256,
        num_trajectories=config.num_trajectories,
        fitted_on=datetime.now(UTC).date(),
        **curve._asdict(),
        held_out=Judged(0, [], [], []).figures,
    )
    judged = Judged(
        num_problems=sum(r.image in kept_back for r in records),
        before=[a.features.agreement for a in to_judge],
        after=[confidence_of(draft, a.features) for a in to_judge],
        is_right=[a.is_right for a in to_judge],
    )
    return draft.model_copy(update={"held_out": judged.figures}), judged


def write_calibration(
    settings: CalibrateSettings,
    config: CalibrationConfig,
    records: Sequence[CalibrationRecord],
) -> Calibration:
    """Fit, and write the calibration, the report and the pictures. Raises `CalibrationError`."""
    calibration, judged = fitted(config, records, held_out=settings.held_out)
    report = CalibrationReport(
        config=config,
        num_failed=sum(r.error is not None for r in records),
        reliability_before=reliability(judged.before, judged.is_right),
        reliability_after=reliability(judged.after, judged.is_right),
        risk_coverage_before=risk_coverage(judged.before, judged.is_right, judged.num_problems),
        risk_coverage_after=risk_coverage(judged.after, judged.is_right, judged.num_problems),
    )
    title = f"{config.problem_set.name}, K = {config.num_trajectories}, held out"
    bins = {"agreement": report.reliability_before, "confidence": report.reliability_after}
    draw_reliability(settings.out / "reliability.png", bins, title)
    risks = {"agreement": report.risk_coverage_before, "confidence": report.risk_coverage_after}
    draw_risk_coverage(settings.out / "risk_coverage.png", risks, title)
    (settings.out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    text = calibration.model_dump_json(indent=1)
    (settings.out / "calibration.json").write_text(f"{text}\n", encoding="utf-8")
    return calibration


async def calibrate(settings: CalibrateSettings, neighbours: Neighbours) -> Calibration:
    """Run or continue the calibration and write its files. The caller closes the clients.

    Raises `CalibrationError`, `ProblemSetError`, or the `BoundaryError` of a service that stayed
    down.
    """
    problems = read_problems(settings.problems)[: settings.limit]
    if not problems:
        raise CalibrationError(f"{settings.problems} has no problems to calibrate on")
    settings.out.mkdir(parents=True, exist_ok=True)  # what cannot be is said before anyone is asked
    config = _config(settings, await neighbours.policy.describe(), problems)
    folder = RecordFolder(
        settings.out,
        CalibrationConfig,
        CalibrationRecord,
        job="calibration",
        error=CalibrationError,
        written=_WRITTEN,
    )
    if settings.fresh:
        folder.clear()
    folder.open(config)
    calibrator = Calibrator(
        neighbours,
        num_trajectories=config.num_trajectories,
        max_turn_tokens=config.max_turn_tokens,
        seed=config.seed,
    )
    records = await _finish_records(settings, config, folder, calibrator, problems)
    return await asyncio.to_thread(write_calibration, settings, config, records)


def _config(
    settings: CalibrateSettings, description: PolicyDescription, problems: list[Problem]
) -> CalibrationConfig:
    if description.weights_sha256 is None:
        raise CalibrationError(
            "the policy cannot say which weights it serves, so that a calibration could not be "
            "tied to them; serve it from a folder"
        )
    return CalibrationConfig(
        problem_set=read_manifest(settings.problems),
        problem_set_sha256=problems_sha256(problems),
        num_problems=len(problems),
        model=description.model,
        run=description.run,
        version=description.version,
        weights_sha256=description.weights_sha256,
        prompt_sha256=prompt_sha256(),
        num_trajectories=settings.k,
        max_turn_tokens=settings.max_turn_tokens,
        seed=settings.seed,
    )


async def _finish_records(
    settings: CalibrateSettings,
    config: CalibrationConfig,
    folder: RecordFolder[CalibrationConfig, CalibrationRecord],
    calibrator: Calibrator,
    problems: list[Problem],
) -> list[CalibrationRecord]:
    """Work on the problems without a record; all records in the order of the problems."""
    records = {record.problem_id: record for record in folder.read()}
    left: Iterator[Problem] = iter([p for p in problems if p.problem_id not in records])
    title = f"{config.problem_set.name}, K = {config.num_trajectories}"
    bar = progress(title=title, unit="problem", total=len(problems), initial=len(records))

    async def worker() -> None:
        for problem in left:
            record = await calibrator.patient_record(
                problem, config.weights_sha256, settings.patience_s
            )
            folder.append(record)
            records[record.problem_id] = record
            bar.update(1)

    workers = [asyncio.create_task(worker()) for _ in range(settings.concurrency)]
    try:
        with bar:
            await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [records[problem.problem_id] for problem in problems]


def summary(calibration: Calibration, settings: CalibrateSettings) -> str:
    """What was found, in three lines."""
    figures = calibration.held_out
    return (
        f"{calibration.num_fitted} answers fitted on, {figures.num_answered} of "
        f"{figures.num_problems} held-out problems answered, {figures.accuracy:.1%} of them right\n"
        f"ECE {figures.ece_before:.4f} (raw agreement) -> {figures.ece_after:.4f} (confidence), "
        f"Brier {figures.brier_before:.4f} -> {figures.brier_after:.4f}, held out\n"
        f"{settings.out / 'calibration.json'}\n"
    )


async def _run(settings: CalibrateSettings) -> str:
    neighbours = Neighbours(
        policy=PolicyClient(settings.policy_url),
        zoom=ZoomClient(settings.zoom_url),
        cca=CcaClient(settings.cca_url),
        blobs=BlobStore(settings.blob_url),
    )
    try:
        return summary(await calibrate(settings, neighbours), settings)
    finally:
        for client in (neighbours.policy, neighbours.zoom, neighbours.cca):
            await client.aclose()


def run(settings: CalibrateSettings) -> None:
    """Calibrate with clients of its own; the summary goes to stdout."""
    sys.stdout.write(asyncio.run(_run(settings)))
