"""A case as a reader is sent it: with its links, and without what it withholds. Pure functions.

The store keeps every case whole. A case that abstained because its answer is too unsure or not
supported has an answer; it is left out here with everything that gives it away, in the case, in
the list, in answers to POSTs and in events, unless the reader asks for it. While a case that may
come to that is running, the words of its events are left out too: what was told cannot be taken
back. So every route that sends a case sends `shown(case)`, and every event goes through
`shown_event` where `hides_words(case)`.
"""

from pydantic import TypeAdapter

from services.clinic.store import StoredEvent
from shared.api.case_events import AnswerEvent, CaseEvent, TrajectoryEvent, TurnEvent
from shared.api.case_result import BlankedAnswer, CaseLinks, CaseVerification
from shared.api.clinic import AbstentionReason, Case, CaseStatus, CaseSummary

SHOW_WITHHELD = "withheld"
"""Value of the query parameter `show` that asks for what is withheld."""

_WITHHOLDING = (AbstentionReason.LOW_CONFIDENCE, AbstentionReason.UNSUPPORTED)
_EVENTS: TypeAdapter[CaseEvent] = TypeAdapter(CaseEvent)


def withholds(case: Case) -> bool:
    """Whether a case has an answer that is not shown unless asked for."""
    return case.abstention in _WITHHOLDING


def hides_words(case: Case) -> bool:
    """Whether the words of a case's events are left out: it withholds its answer, or still may.

    A follow-up has no confidence to be below anything.
    """
    settings = case.settings
    may_be_unsure = settings.abstain_below > 0.0 and case.follows is None
    may_withhold = may_be_unsure or settings.withhold_unsupported
    return withholds(case) or (case.status is CaseStatus.RUNNING and may_withhold)


def shown(case: Case, *, with_withheld: bool = False) -> Case:
    """The case as it is sent."""
    linked = case.model_copy(update={"links": links_of(case)})
    return _without_answer(linked) if withholds(case) and not with_withheld else linked


def links_of(case: Case) -> CaseLinks:
    """Where everything about a case is."""
    here = f"/v1/cases/{case.case_id}"
    verification = case.verification
    without = None if verification is None else verification.evidence_blanked
    control = None if verification is None else verification.elsewhere_blanked
    return CaseLinks(
        self=here,
        page=f"/cases/{case.case_id}",
        events=f"{here}/events",
        image=case.image.url,
        crops=[zoom.crop_url for zoom in case.evidence],
        heatmap=None if case.consensus is None else case.consensus.heatmap_url,
        evidence_blanked=None if without is None else without.image_url,
        elsewhere_blanked=None if control is None else control.image_url,
        cancel=f"{here}/cancel" if case.status is CaseStatus.RUNNING else None,
        follow_ups=f"{here}/follow-ups" if case.status is CaseStatus.ANSWERED else None,
        feedback=f"{here}/feedback",
        withheld=f"{here}?show={SHOW_WITHHELD}" if withholds(case) else None,
    )


def _without_answer(case: Case) -> Case:
    """All but the answer: where was looked and how sure the policy was, not what it said."""
    silent = {"thought": "", "text": "", "answer": None}
    hidden = {
        "is_withheld": True,
        "answer": None,
        "option_text": None,
        "option_probability": None,
        "option_probabilities": {},
        "votes": {},
        "turns": [turn.model_copy(update=silent) for turn in case.turns],
        "evidence": [zoom.model_copy(update={"text_before": ""}) for zoom in case.evidence],
        "attempts": [attempt.model_copy(update={"answer": None}) for attempt in case.attempts],
        "verification": _without_answers(case.verification),
    }
    return case.model_copy(update=hidden)


def _without_answers(verification: CaseVerification | None) -> CaseVerification | None:
    def silent(asked: BlankedAnswer | None) -> BlankedAnswer | None:
        hidden = {"answer": None, "option_text": None, "votes": {}}
        return None if asked is None else asked.model_copy(update=hidden)

    return verification and verification.model_copy(
        update={
            "evidence_blanked": silent(verification.evidence_blanked),
            "elsewhere_blanked": silent(verification.elsewhere_blanked),
        }
    )


def as_stored(stored: StoredEvent) -> StoredEvent:
    """An event with its words."""
    return stored


def shown_event(stored: StoredEvent) -> StoredEvent:
    """An event without its words; an answer that is given stays."""
    event = _EVENTS.validate_json(stored.document)
    match event:
        case TurnEvent():
            event = event.model_copy(update={"thought": "", "answer": None})
        case TrajectoryEvent():
            event = event.model_copy(update={"answer": None})
        case AnswerEvent() if event.abstention in _WITHHOLDING:
            event = event.model_copy(update={"answer": None, "option_text": None})
        case _:
            return stored
    return StoredEvent(stored.number, stored.name, event.model_dump_json())


def summary_of(case: Case) -> CaseSummary:
    """A case as a line of the list."""
    sent = shown(case)
    return CaseSummary(
        case_id=sent.case_id,
        url=f"/v1/cases/{sent.case_id}",
        status=sent.status,
        created_at=sent.created_at,
        question=sent.question,
        answer=sent.answer,
        option_text=sent.option_text,
        abstention=sent.abstention,
        agreement=sent.agreement,
        confidence=sent.confidence,
    )
