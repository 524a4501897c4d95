"""One case, from its stored question to its answer: METHOD.md, At inference.

`view → K trajectories side by side → consensus → confidence → verification → the case`. Nothing
is stored here but the heatmap's bytes; the same case may be worked again after a crash and costs
only time.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal

import msgspec

from services.clinic.confidence import Features, LoadedCalibration, confidence_of, unfit_for
from services.clinic.conversation import reminded
from services.clinic.provenance import provenance_of
from services.clinic.reasoning import (
    attempt_of,
    consensus_of,
    evidence_of,
    option_probabilities,
    option_text,
    size_of,
    turns_of,
    versions_of,
)
from services.clinic.rounds import Neighbours, consensus_request, open_case, run_trajectories
from services.clinic.telling import Tell
from services.clinic.verifying import Verifier
from shared.api.case_events import StartedEvent
from shared.api.case_result import UnknownConfidence
from shared.api.cca import ConsensusOutcome, ConsensusResponse, Heatmap
from shared.api.clinic import AbstentionReason, Case, CasePolicy, CaseStatus, CaseTimings
from shared.blobs import BlobStore
from shared.errors import CcaError
from shared.trajectory import Trajectory

Stage = Literal[
    "ingest_s",
    "waiting_s",
    "view_s",
    "trajectories_s",
    "consensus_s",
    "evidence_blanked_s",
    "elsewhere_blanked_s",
]

_ABSTENTIONS = {
    ConsensusOutcome.TIED: AbstentionReason.TIED,
    ConsensusOutcome.UNANSWERED: AbstentionReason.UNANSWERED,
    ConsensusOutcome.UNCOMMITTED: AbstentionReason.UNCOMMITTED,
}


class Stopwatch:
    """Seconds per stage of one case; a stage that fails is still measured."""

    def __init__(
        self, before: CaseTimings | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        if before is not None:
            self._seconds["ingest_s"] = before.ingest_s

    @contextmanager
    def stage(self, name: Stage) -> Generator[None, None, None]:
        """Measure a stage."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._clock() - started

    @property
    def timings(self) -> CaseTimings:
        """What was measured so far."""
        return CaseTimings(**self._seconds, total_s=sum(self._seconds.values()))


class Standing(msgspec.Struct, frozen=True):
    """What the clinic itself brings to every case."""

    calibration: LoadedCalibration | None
    code_version: str


async def answer_case(
    neighbours: Neighbours,
    standing: Standing,
    case: Case,
    watch: Stopwatch,
    tell: Tell,
    earlier: Sequence[Case] = (),
) -> Case:
    """The case answered or abstained, telling its course. Raises the `BoundaryError` it met.

    `earlier` are the cases before a follow-up, oldest first.
    """
    await tell([StartedEvent(num_trajectories=case.settings.num_trajectories)])
    with watch.stage("view_s"):
        policy = neighbours.policy.of_group(case.case_id)
        description = await policy.describe()
        opened = await open_case(neighbours, description, case, case.image.sha256)
        if earlier:
            opened, context = await reminded(policy, description, opened, case, earlier)
            case = case.model_copy(update={"context": context})
    with watch.stage("trajectories_s"):
        trajectories = await run_trajectories(
            neighbours, case, description, opened, prefix=case.case_id, tell=tell
        )
    with watch.stage("consensus_s"):
        request = consensus_request(case, trajectories, heatmap=True)
        outcome = await neighbours.cca.consensus(request)
        heatmap = await asyncio.to_thread(_store_heatmap, neighbours.blobs, outcome.heatmap)
    versions = versions_of(trajectories)
    calibration = standing.calibration
    made_by = {
        "policy": CasePolicy(
            model=description.model,
            run=description.run,
            versions=versions,
            view_width_px=opened.view_size.width_px,
            view_height_px=opened.view_size.height_px,
            max_turns=description.max_turns,
        ),
        "provenance": provenance_of(
            case,
            description,
            versions,
            code=standing.code_version,
            calibration_id=None if calibration is None else calibration.calibration_id,
        ),
    }
    concluded = _concluded(case.model_copy(update=made_by), trajectories, outcome, heatmap)
    judged = judge(concluded, calibration)
    if judged.settings.verify and outcome.answer is not None:
        verifier = Verifier(neighbours, description, judged, tell)
        verification = await verifier.verify(outcome.answer, watch)
        judged = judged.model_copy(update={"verification": verification})
    return decide(judged)


def features_of(case: Case) -> Features | None:
    """What is known of a case's answer; None without one."""
    probability, iou = case.mean_answer_token_probability, case.consensus_iou
    if case.agreement is None or probability is None or iou is None:
        return None
    return Features(case.agreement, probability, iou)


def judge(case: Case, loaded: LoadedCalibration | None) -> Case:
    """The case with the confidence of its answer, or the reason why there is none."""
    features, made_by = features_of(case), case.provenance
    assert made_by is not None, "a case is judged after its trajectories"
    calibration = None if loaded is None else loaded.calibration
    reason = unfit_for(
        calibration,
        weights_sha256=made_by.weights_sha256,
        num_trajectories=made_by.num_trajectories,
        prompt_sha256=made_by.prompt_sha256,
    )
    if reason is None and case.follows is not None:
        reason = UnknownConfidence.OTHER_PROMPT
    if features is None:
        reason = UnknownConfidence.NOT_ANSWERED
    confidence = None
    if reason is None and calibration is not None and features is not None:
        confidence = confidence_of(calibration, features)
    judgement = {
        "confidence": confidence,
        "confidence_unknown": reason,
        "calibration": None if loaded is None else loaded.name,
    }
    return case.model_copy(update=judgement)


def decide(case: Case) -> Case:
    """Abstain where the answer is too unsure, or not supported by its evidence.

    A confidence that is not known is not below anything; the case says why it is not known.
    """
    settings, verification = case.settings, case.verification
    reason = None
    if case.confidence is not None and case.confidence < settings.abstain_below:
        reason = AbstentionReason.LOW_CONFIDENCE
    elif (
        settings.withhold_unsupported
        and verification is not None
        and verification.supported is False
    ):
        reason = AbstentionReason.UNSUPPORTED
    if reason is None or case.status is not CaseStatus.ANSWERED:
        return case
    return case.model_copy(update={"status": CaseStatus.ABSTAINED, "abstention": reason})


def _store_heatmap(blobs: BlobStore, heatmap: Heatmap | None) -> str | None:
    """The heatmap's name in the blob store; None if there is none or it is all zero."""
    if heatmap is None or heatmap.max_count == 0:
        return None
    return blobs.put(base64.b64decode(heatmap.png_base64, validate=True))


def _concluded(
    case: Case,
    trajectories: list[Trajectory],
    outcome: ConsensusResponse,
    heatmap_sha256: str | None,
) -> Case:
    """The case with everything the trajectories and the scorer said."""
    concluded = case.model_copy(
        update={
            "attempts": [
                attempt_of(trajectory, beside)
                for trajectory, beside in zip(trajectories, outcome.attempts, strict=True)
            ],
            "agreement": outcome.agreement,
            "votes": outcome.votes,
            "option_probabilities": option_probabilities(
                case.choices, [attempt.answer for attempt in outcome.attempts]
            ),
            "consensus": consensus_of(
                case.case_id,
                outcome.consensus,
                outcome.heatmap,
                heatmap_sha256,
                size_of(case.image),
            ),
        }
    )
    if outcome.outcome is not ConsensusOutcome.AGREED:
        abstained = {
            "status": CaseStatus.ABSTAINED,
            "abstention": _ABSTENTIONS[outcome.outcome],
        }
        return concluded.model_copy(update=abstained)
    return _answered(concluded, _shown(trajectories, outcome), outcome)


def _shown(trajectories: list[Trajectory], outcome: ConsensusResponse) -> Trajectory:
    for trajectory in trajectories:
        if trajectory.trajectory_id == outcome.shown_trajectory_id:
            return trajectory
    raise CcaError("the consensus names a trajectory it was not given", is_transient=False)


def _answered(case: Case, shown: Trajectory, outcome: ConsensusResponse) -> Case:
    evidence = evidence_of(case.case_id, shown, case.image)
    letter = (outcome.answer or "").upper()
    chosen = option_text(letter, case.choices)
    agreeing = [attempt for attempt in case.attempts if attempt.agrees]
    sure = [a.answer_token_probability or 0.0 for a in agreeing]
    [iou] = [a.consensus_iou for a in agreeing if a.trajectory_id == shown.trajectory_id]
    answered = {
        "status": CaseStatus.ANSWERED,
        "answer": shown.answer if chosen is None else letter,
        "option_text": chosen,
        "option_probability": case.option_probabilities.get(letter),
        "mean_answer_token_probability": sum(sure) / len(sure),
        "consensus_iou": iou,
        "shown_trajectory_id": shown.trajectory_id,
        "turns": turns_of(shown, evidence),
        "evidence": evidence,
    }
    return case.model_copy(update=answered)
