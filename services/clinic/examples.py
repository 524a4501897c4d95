"""The examples of the OpenAPI document: real models, so that they cannot fall behind the types."""

from datetime import UTC, datetime

from services.clinic.example_result import (
    EXAMPLE_CALIBRATION,
    EXAMPLE_PROVENANCE,
    EXAMPLE_RENDERING,
    example_verification,
)
from services.clinic.showing import shown, summary_of
from services.clinic.telling import closing_events
from shared.api.case_course import (
    CaseAttempt,
    CaseConsensus,
    CaseContext,
    CaseEvidence,
    CaseToolCall,
    CaseTurn,
    ContextCase,
)
from shared.api.case_events import (
    CaseEvent,
    StartedEvent,
    TrajectoryEvent,
    TurnEvent,
    UncertaintyEvent,
    VerificationEvent,
    ZoomEvent,
)
from shared.api.case_result import Blanked
from shared.api.clinic import (
    AbstentionReason,
    Case,
    CaseImage,
    CasePage,
    CasePolicy,
    CaseSettings,
    CaseStatus,
    CaseSubject,
    CaseTimings,
    ClinicDescription,
)
from shared.api.headers import Deidentification, ImageHeader
from shared.api.zoom import WireBox

EXAMPLE_ID = "5f0c1f5a6c1b4c0f9a3d2b1e8f7a6c5d"
_FOLLOW_UP_ID = "b3d5a0c47e1f4f6e8c2a9d0b7f6e5a41"
_CROP = "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab"
_IMAGE = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
_HEATMAP = "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9"
_BOX = WireBox(x1=168, y1=84, x2=220, y2=140)
_CREATED = datetime(2026, 3, 2, 9, 30, 0, tzinfo=UTC)
_FINISHED = datetime(2026, 3, 2, 9, 30, 7, tzinfo=UTC)

EXAMPLE_EVIDENCE = CaseEvidence(
    index=0,
    turn=0,
    text_before="<think>Something bright right of the midline; look closer.</think>",
    box=_BOX,
    box_normalised=[0.5, 0.25, 0.6547619047619048, 0.4166666666666667],
    frame=EXAMPLE_RENDERING.frame,
    windows=EXAMPLE_RENDERING.windows,
    crop=_CROP,
    crop_url=f"/v1/cases/{EXAMPLE_ID}/crops/{_CROP}",
    crop_width_px=84,
    crop_height_px=84,
    baseline_entropy_nats=0.21,
    tool_entropy_nats=1.34,
    entropy_increase_nats=1.13,
)

_CASE = Case(
    case_id=EXAMPLE_ID,
    status=CaseStatus.ANSWERED,
    created_at=_CREATED,
    finished_at=_FINISHED,
    question="What kind of lesion is shown?",
    choices=["ring", "cross", "dot", "bar"],
    image=CaseImage(
        url=f"/v1/cases/{EXAMPLE_ID}/image",
        sha256=_IMAGE,
        width_px=336,
        height_px=336,
        source_format="dicom",
        rendering=EXAMPLE_RENDERING,
        window_center=40,
        window_width=80,
        preprocessing_version=EXAMPLE_PROVENANCE.preprocessing_version,
        header=ImageHeader(
            modality="CT",
            sop_class="Enhanced CT Image Storage",
            body_part="HEAD",
            photometric_interpretation="MONOCHROME2",
            bits_stored=12,
            pixel_spacing_mm=[0.68, 0.68],
            slice_thickness_mm=5.0,
        ),
        deidentification=Deidentification(
            profile="DICOM PS3.15 Basic Application Level Confidentiality Profile",
            edition="2026c",
            library="dicom-anonymizer 2.1.0",
            burned_in_text="declared_absent",
            burned_in_reasons=["BurnedInAnnotation is NO"],
        ),
    ),
    subject=CaseSubject(
        patient="patient-5b1f0a9c2d3e4f60",
        study="study-90d1c4b7a8e2f314",
        header="header-2c77d1f03b9a6e58",
    ),
    settings=CaseSettings(
        num_trajectories=3,
        seed=7,
        temperature=1.0,
        max_turn_tokens=512,
        verify=True,
        abstain_below=0.5,
        withhold_unsupported=True,
    ),
    answer="B",
    option_text="cross",
    option_probability=2 / 3,
    option_probabilities={"A": 0.0, "B": 2 / 3, "C": 1 / 3, "D": 0.0},
    confidence=0.81,
    calibration=EXAMPLE_CALIBRATION,
    shown_trajectory_id=f"{EXAMPLE_ID}:1",
    turns=[
        CaseTurn(
            index=0,
            thought="Something bright right of the midline; look closer.",
            text="<think>Something bright right of the midline; look closer.</think><tool_call>"
            '{"name": "zoom_in", "arguments": {"bbox_2d": [84, 42, 110, 70]}}</tool_call>',
            mean_entropy_nats=0.48,
            num_tokens=41,
            call=CaseToolCall(bbox_2d=[84, 42, 110, 70], evidence_index=0, error=None),
            answer=None,
        ),
        CaseTurn(
            index=1,
            thought="Two crossing bars.",
            text="<think>Two crossing bars.</think><answer>B</answer>",
            mean_entropy_nats=0.09,
            num_tokens=12,
            call=None,
            answer="B",
        ),
    ],
    evidence=[EXAMPLE_EVIDENCE],
    agreement=2 / 3,
    votes={"B": 2, "C": 1},
    mean_answer_token_probability=0.94,
    consensus_iou=1.0,
    verification=example_verification(EXAMPLE_ID, _BOX),
    consensus=CaseConsensus(
        num_agreeing=2,
        rectangles=[_BOX],
        area_px=2912,
        area_share=2912 / (336 * 336),
        heatmap_url=f"/v1/cases/{EXAMPLE_ID}/heatmap",
        heatmap_sha256=_HEATMAP,
        heatmap_max_count=2,
    ),
    attempts=[
        CaseAttempt(
            trajectory_id=f"{EXAMPLE_ID}:{index}",
            seed=seed,
            answer=answer,
            stop_reason="answered",
            num_turns=2,
            boxes=[_BOX],
            agrees=answer == "B",
            consensus_iou=1.0,
            answer_token_probability=0.94,
        )
        for index, (seed, answer) in enumerate([(11, "B"), (12, "B"), (13, "C")])
    ],
    policy=CasePolicy(
        model="medvr-tiny",
        run="demo",
        versions=[40],
        view_width_px=168,
        view_height_px=168,
        max_turns=5,
    ),
    provenance=EXAMPLE_PROVENANCE,
    timings=CaseTimings(
        ingest_s=0.02,
        view_s=0.05,
        trajectories_s=6.4,
        consensus_s=0.01,
        evidence_blanked_s=6.2,
        elsewhere_blanked_s=6.3,
        total_s=18.98,
    ),
)

EXAMPLE_CASE = shown(_CASE)

EXAMPLE_WITHHELD = shown(
    _CASE.model_copy(
        update={
            "status": CaseStatus.ABSTAINED,
            "abstention": AbstentionReason.LOW_CONFIDENCE,
            "confidence": 0.31,
        }
    )
)

_RUNNING = Case(
    case_id=EXAMPLE_ID,
    status=CaseStatus.RUNNING,
    created_at=_CREATED,
    question=EXAMPLE_CASE.question,
    choices=EXAMPLE_CASE.choices,
    image=EXAMPLE_CASE.image,
    subject=EXAMPLE_CASE.subject,
    settings=EXAMPLE_CASE.settings,
    timings=CaseTimings(ingest_s=0.02, total_s=0.02),
)

EXAMPLE_RUNNING = shown(_RUNNING)

EXAMPLE_CANCELLED = shown(
    _RUNNING.model_copy(update={"status": CaseStatus.CANCELLED, "finished_at": _FINISHED})
)

EXAMPLE_FOLLOW_UP = Case(
    case_id=_FOLLOW_UP_ID,
    status=CaseStatus.ANSWERED,
    created_at=_FINISHED,
    finished_at=_FINISHED,
    question="Is it on the left?",
    choices=["yes", "no"],
    image=EXAMPLE_CASE.image.model_copy(update={"url": f"/v1/cases/{_FOLLOW_UP_ID}/image"}),
    settings=EXAMPLE_CASE.settings,
    follows=EXAMPLE_ID,
    context=CaseContext(
        shown=[ContextCase(case_id=EXAMPLE_ID, num_crops_shown=1, num_crops_dropped=0)],
        dropped=[],
    ),
    answer="B",
    option_text="no",
)

_EXAMPLE_EVENTS: list[CaseEvent] = [
    StartedEvent(num_trajectories=3),
    TurnEvent(
        trajectory_id=f"{EXAMPLE_ID}:1",
        turn=0,
        thought="Something bright right of the midline; look closer.",
        mean_entropy_nats=0.48,
        num_tokens=41,
    ),
    UncertaintyEvent(
        trajectory_id=f"{EXAMPLE_ID}:1",
        turn=0,
        baseline_entropy_nats=0.21,
        tool_entropy_nats=1.34,
        entropy_increase_nats=1.13,
    ),
    ZoomEvent(
        trajectory_id=f"{EXAMPLE_ID}:1",
        turn=0,
        box=_BOX,
        box_normalised=EXAMPLE_EVIDENCE.box_normalised,
        crop=_CROP,
        crop_url=EXAMPLE_EVIDENCE.crop_url,
        crop_width_px=84,
        crop_height_px=84,
    ),
    TrajectoryEvent(
        trajectory_id=f"{EXAMPLE_ID}:1", answer="B", stop_reason="answered", num_turns=2
    ),
    VerificationEvent(blanked=Blanked.EVIDENCE, state="asking"),
    VerificationEvent(blanked=Blanked.EVIDENCE, state="asked", changed=True),
    VerificationEvent(blanked=Blanked.ELSEWHERE, state="asking"),
    VerificationEvent(blanked=Blanked.ELSEWHERE, state="asked", changed=False),
    *closing_events(EXAMPLE_CASE),
]

EXAMPLE_STREAM = {
    "example": "".join(
        f"id: {number}\nevent: {told.event}\ndata: {told.model_dump_json()}\n\n"
        for number, told in enumerate(_EXAMPLE_EVENTS, start=1)
    )
}


EXAMPLE_PAGE = CasePage(
    cases=[summary_of(EXAMPLE_CASE)], next_url=f"/v1/cases?limit=1&before={EXAMPLE_ID}"
)

EXAMPLE_DESCRIPTION = ClinicDescription(
    default_trajectories=5,
    max_choice_chars=500,
    max_question_chars=2000,
    max_upload_bytes=64 * 1024 * 1024,
    accepted_formats=["PNG", "JPEG", "WebP", "TIFF", "DICOM", "NIfTI"],
    windows=["lung", "brain", "ct_rgb"],
)
