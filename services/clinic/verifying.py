"""Is the evidence really why? The same question without it, and without as much elsewhere.

The evidence is the consensus region; where no strict majority looked at one place, it is what the
shown trajectory looked at. A window it set shows no place: it counts, as the whole image, only
where nothing else was looked at. Both rounds use the case's K and seeds, so that nothing differs
but the pixels. "Changed" means that the majority over K gave another answer, or none. Images come
only from zoom; a region it refuses to blank is a reason, not a failure.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from services.clinic.elsewhere import place_elsewhere
from services.clinic.reasoning import option_text, size_of, wire_box
from services.clinic.rounds import Neighbours, consensus_request, open_case, run_trajectories
from services.clinic.telling import Tell
from shared.agent.tools import SET_WINDOW
from shared.api.case_events import VerificationEvent
from shared.api.case_result import (
    Blanked,
    BlankedAnswer,
    CaseVerification,
    EvidenceRegion,
    UnaskedReason,
)
from shared.api.cca import ConsensusResponse
from shared.api.clinic import Case
from shared.api.policy import PolicyDescription
from shared.api.zoom import MAX_BLANK_RECTANGLES, BlankRequest, BlankResponse
from shared.errors import ZoomError
from shared.geometry import Box


class Watch(Protocol):
    """What measures the two rounds."""

    def stage(
        self, name: Literal["evidence_blanked_s", "elsewhere_blanked_s"]
    ) -> AbstractContextManager[None]:
        """Measure a stage."""
        ...


def evidence_region(case: Case) -> tuple[EvidenceRegion | None, list[Box]]:
    """What is taken for the place of the evidence of an answered case, and its rectangles."""
    if case.consensus is not None and case.consensus.rectangles:
        rectangles = case.consensus.rectangles
        return EvidenceRegion.CONSENSUS, [Box(r.x1, r.y1, r.x2, r.y2) for r in rectangles]
    placed = [each for each in case.evidence if each.tool != SET_WINDOW.name]
    looked = [Box(e.box.x1, e.box.y1, e.box.x2, e.box.y2) for e in placed or case.evidence]
    return (EvidenceRegion.SHOWN_TRAJECTORY if looked else None), looked


class Verifier:
    """Verifies one answered case; raises the `BoundaryError` it met."""

    def __init__(
        self, neighbours: Neighbours, description: PolicyDescription, case: Case, tell: Tell
    ) -> None:
        self._neighbours = neighbours
        self._description = description
        self._case = case
        self._tell = tell

    async def verify(self, answer: str, watch: Watch) -> CaseVerification:
        """Ask twice more; `answer` is the normalised one that was given to the whole image."""
        region, rectangles = evidence_region(self._case)
        if region is None:
            reason = UnaskedReason.NO_EVIDENCE
            return CaseVerification(
                evidence_unasked=reason, elsewhere_unasked=reason, supported=False
            )
        with watch.stage("evidence_blanked_s"):
            without = await self._ask(Blanked.EVIDENCE, rectangles, answer)
        size, seed = size_of(self._case.image), self._case.settings.seed
        other = place_elsewhere(rectangles, size, seed)
        if other is None:
            control: BlankedAnswer | UnaskedReason = UnaskedReason.NO_PLACE
        else:
            with watch.stage("elsewhere_blanked_s"):
                control = await self._ask(Blanked.ELSEWHERE, other, answer)
        return _verification(region, without, control)

    async def _ask(
        self, blanked: Blanked, rectangles: Sequence[Box], answer: str
    ) -> BlankedAnswer | UnaskedReason:
        case = self._case
        image = await self._blank(rectangles)
        if image is None:
            return UnaskedReason.NOT_BLANKABLE
        await self._tell([VerificationEvent(blanked=blanked, state="asking")])
        opened = await open_case(self._neighbours, self._description, case, image.image)
        trajectories = await run_trajectories(
            self._neighbours,
            case,
            self._description,
            opened,
            prefix=f"{case.case_id}:{blanked.value}",
            tell=None,
        )
        outcome = await self._neighbours.cca.consensus(
            consensus_request(case, trajectories, heatmap=False)
        )
        asked = _blanked_answer(case, blanked, rectangles, image, outcome, answer)
        event = VerificationEvent(blanked=blanked, state="asked", changed=asked.changed)
        await self._tell([event])
        return asked

    async def _blank(self, rectangles: Sequence[Box]) -> BlankResponse | None:
        """The image without a region; None if zoom refuses to blank it. Raises `ZoomError`."""
        if len(rectangles) > MAX_BLANK_RECTANGLES:
            return None
        request = BlankRequest(
            image=self._case.image.sha256, rectangles=[wire_box(box) for box in rectangles]
        )
        try:
            return await self._neighbours.zoom.blank(request)
        except ZoomError as error:
            if error.status == 422:
                return None
            raise


def _blanked_answer(
    case: Case,
    blanked: Blanked,
    rectangles: Sequence[Box],
    image: BlankResponse,
    outcome: ConsensusResponse,
    answer: str,
) -> BlankedAnswer:
    return BlankedAnswer(
        rectangles=[wire_box(box) for box in rectangles],
        area_px=image.blanked_px,
        image=image.image,
        image_url=f"/v1/cases/{case.case_id}/blanked/{blanked.value}",
        answer=outcome.answer,
        option_text=option_text(outcome.answer or "", case.choices),
        agreement=outcome.agreement,
        votes=outcome.votes,
        changed=outcome.answer != answer,
    )


def _verification(
    region: EvidenceRegion,
    without: BlankedAnswer | UnaskedReason,
    control: BlankedAnswer | UnaskedReason,
) -> CaseVerification:
    """Both rounds together; whether the answer is supported is decided by the first alone."""
    asked = without if isinstance(without, BlankedAnswer) else None
    controlled = control if isinstance(control, BlankedAnswer) else None
    return CaseVerification(
        region=region,
        evidence_blanked=asked,
        evidence_unasked=None if isinstance(without, BlankedAnswer) else without,
        elsewhere_blanked=controlled,
        elsewhere_unasked=None if isinstance(control, BlankedAnswer) else control,
        supported=None if asked is None else asked.changed,
    )
