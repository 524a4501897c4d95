"""Examples of what a result is made of beside its answer."""

from datetime import date

from shared.api.case_result import (
    BlankedAnswer,
    CalibrationName,
    CaseProvenance,
    CaseVerification,
    EvidenceRegion,
)
from shared.api.zoom import AppliedRendering, AppliedWindow, WireBox

_CALIBRATION = "7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730"
_PROBLEMS = "bf07a7fbb825fc0aae7bf4a1177b2b31fcf8a3feeaf7092761e18c859ee52a9c"
_WEIGHTS = "181210f8f9c779c26da1d9b2075bde0127302ee0e3fca38c9a83f5b1dd8e5d3b"
_PROMPT = "f9b16e68f0ebd6f5cd6d2bb9f2eb14ae2a1de7bd5ac8ae54f27fe94a2e3b0f1c"
_TOOL = "4b227777d4dd1fc61c6f884f48641d02b4d121d3fd328cb08b5531fcacdabf8a"
_WITHOUT = "ef2d127de37b942baad06145e54b0c619a1f22327b2ebbcfbec78f5564afe39d"
_CONTROL = "e7f6c011776e8db7cd330b54174fd76f7d0216b612387a5ffcfb81e6f0919683"

EXAMPLE_RENDERING = AppliedRendering(
    frame=3,
    num_frames=24,
    grey_mapping="requested_window",
    windows=[AppliedWindow(center=40, width=80, function="LINEAR", preset="brain")],
)

EXAMPLE_CALIBRATION = CalibrationName(
    calibration_id=_CALIBRATION,
    problem_set="brain-calibration",
    problem_set_sha256=_PROBLEMS,
    num_problems=400,
    num_trajectories=3,
    weights_sha256=_WEIGHTS,
    prompt_sha256=_PROMPT,
    fitted_on=date(2026, 2, 27),
)

EXAMPLE_PROVENANCE = CaseProvenance(
    model="medvr-tiny",
    run="demo",
    versions=[40],
    weights_sha256=_WEIGHTS,
    engine="vllm 0.32.0",
    prompt_sha256=_PROMPT,
    tools={"zoom_in": _TOOL},
    preprocessing_version="1",
    code_version="0.1.0",
    temperature=1.0,
    top_p=1.0,
    num_trajectories=3,
    seed=7,
    max_turns=5,
    max_turn_tokens=512,
    calibration_id=_CALIBRATION,
)


def example_verification(case_id: str, region: WireBox) -> CaseVerification:
    """The answer changes without its evidence, and stays without as much elsewhere."""
    elsewhere = WireBox(x1=60, y1=200, x2=112, y2=256)
    area_px = (region.x2 - region.x1) * (region.y2 - region.y1)
    return CaseVerification(
        region=EvidenceRegion.CONSENSUS,
        evidence_blanked=BlankedAnswer(
            rectangles=[region],
            area_px=area_px,
            image=_WITHOUT,
            image_url=f"/v1/cases/{case_id}/blanked/evidence",
            answer="C",
            option_text="dot",
            agreement=2 / 3,
            votes={"C": 2, "A": 1},
            changed=True,
        ),
        elsewhere_blanked=BlankedAnswer(
            rectangles=[elsewhere],
            area_px=area_px,
            image=_CONTROL,
            image_url=f"/v1/cases/{case_id}/blanked/elsewhere",
            answer="B",
            option_text="cross",
            agreement=1.0,
            votes={"B": 3},
            changed=False,
        ),
        supported=True,
    )
