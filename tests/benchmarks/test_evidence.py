"""What the benchmark of confidence and evidence counts, on cases written by hand."""

from datetime import UTC, datetime

from benchmarks.evidence import Asked, at_coverage, flips
from services.clinic.fitting import RiskAt
from shared.api.case_result import BlankedAnswer, CaseVerification, UnaskedReason
from shared.api.clinic import Case, CaseImage, CaseSettings, CaseStatus
from shared.api.zoom import WireBox
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind, Problem

LESION = Box(40, 40, 60, 60)


def asked(evidence: bool | None, elsewhere: bool | None, box: WireBox | None = None) -> Asked:
    """A verified case whose majority changed or not; None: it was not asked so."""

    def answer(changed: bool | None) -> BlankedAnswer | None:
        return (
            None
            if changed is None
            else BlankedAnswer(
                rectangles=[box or WireBox(x1=0, y1=0, x2=28, y2=28)],
                area_px=784,
                image="a" * 64,
                image_url="",
                agreement=1.0,
                votes={},
                changed=changed,
            )
        )

    problem = Problem(
        problem_id="p",
        image="b" * 64,
        image_size=ImageSize(100, 100),
        question="?",
        gold_answer="A",
        answer_kind=AnswerKind.CHOICE,
    )
    case = Case(
        case_id="p",
        status=CaseStatus.ANSWERED,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        question="?",
        choices=["one", "two"],
        image=CaseImage(url="", sha256="b" * 64, width_px=100, height_px=100, source_format="png"),
        settings=CaseSettings(num_trajectories=3, seed=1, temperature=1.0, max_turn_tokens=64),
        verification=CaseVerification(
            evidence_blanked=answer(evidence),
            evidence_unasked=UnaskedReason.NOT_BLANKABLE if evidence is None else None,
            elsewhere_blanked=answer(elsewhere),
            elsewhere_unasked=UnaskedReason.NO_PLACE if elsewhere is None else None,
            supported=evidence,
        ),
    )
    return Asked(problem, LESION, case, is_right=True)


def test_flips_are_counted_among_cases_that_were_asked_both_ways():
    cases = [asked(True, False), asked(True, True), asked(False, False), asked(True, False)]
    cases += [asked(None, False), asked(True, None)]

    assert flips(cases) == {
        "num_cases": 4,
        "evidence_blanked": 0.75,
        "elsewhere_blanked": 0.25,
        "only_evidence": 0.5,
    }
    assert flips([])["evidence_blanked"] is None


def test_the_lesion_was_in_the_evidence_if_its_centre_was_blanked():
    assert asked(True, False, WireBox(x1=30, y1=30, x2=51, y2=51)).has_seen_the_lesion
    assert not asked(True, False, WireBox(x1=30, y1=30, x2=50, y2=50)).has_seen_the_lesion
    assert not asked(None, None).has_seen_the_lesion


def test_the_risk_at_a_coverage_is_that_of_the_first_point_that_reaches_it():
    curve = [RiskAt(0.3, 0.0), RiskAt(0.75, 0.1), RiskAt(0.95, 0.2)]
    assert at_coverage(curve, 0.7) == [0.75, 0.1]
    assert at_coverage(curve, 0.99) is None
