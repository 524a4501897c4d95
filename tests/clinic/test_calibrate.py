"""`medvr clinic calibrate` over real zoom and cca: resumed, fitted, written, and used."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from services.clinic.__main__ import main
from services.clinic.calibrate import run
from services.clinic.calibrate_settings import CalibrateSettings
from services.clinic.confidence import CalibrationError, load_calibration
from shared.clients.zoom import ZoomClient
from shared.geometry import ImageSize
from shared.problem import AnswerKind, Problem, ProblemSetManifest, write_problem_set
from tests.clinic.conftest import Surroundings
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import Say, ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION, ask

NUM_PROBLEMS = 40
TWO_OF_THREE: list[list[Say]] = [[look(IN_VIEW), answer("B")]] * 2 + [[look(IN_VIEW), answer("C")]]
ALL_THREE: list[list[Say]] = [[look(IN_VIEW), answer("B")]] * 3


@pytest.fixture(scope="module")
def problems(_surroundings: Surroundings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems whose images differ; every other one's right answer is C, the others' is B."""

    async def ingest() -> list[str]:
        zoom = ZoomClient(_surroundings.zoom_url)
        try:
            images: list[str] = []
            for index in range(NUM_PROBLEMS):
                image = picture(112, 112)
                image.paste(Image.new("RGB", (4, 4), (5 * index, 0, 0)))
                images.append((await zoom.ingest(png(image))).image)
            return images
        finally:
            await zoom.aclose()

    listed = [
        Problem(
            problem_id=f"p{index}",
            image=image,
            image_size=ImageSize(112, 112),
            question=QUESTION,
            options=tuple(CHOICES),
            gold_answer="C" if index % 2 else "B",
            answer_kind=AnswerKind.CHOICE,
        )
        for index, image in enumerate(asyncio.run(ingest()))
    ]
    manifest = ProblemSetManifest(name="spots", num_problems=len(listed), seed=0, source="a test")
    folder = tmp_path_factory.mktemp("problems") / "spots"
    write_problem_set(folder, manifest, listed)
    return folder


@pytest.fixture
def flags(surroundings: Surroundings, problems: Path, tmp_path: Path) -> dict[str, str]:
    """Problems one by one, so that the script knows whose turn it is."""
    return {
        "problems": str(problems),
        "out": str(tmp_path / "calibration"),
        "policy_url": surroundings.policy.url,
        "zoom_url": surroundings.zoom_url,
        "cca_url": surroundings.cca_url,
        "blob_url": surroundings.blob_url,
        "k": "3",
        "concurrency": "1",
        "held_out": "0.25",
        "patience_s": "0",
    }


def rehearse(policy: ScriptedPolicy) -> None:
    """Always B; two of three where C is right, all three where B is: agreement tells them apart."""
    policy.rehearse(*ALL_THREE, *TWO_OF_THREE)


def settings(flags: dict[str, str], **changes: object) -> CalibrateSettings:
    return CalibrateSettings.model_validate(flags | changes)


def command(flags: dict[str, str]) -> list[str]:
    named = {
        ("-k" if name == "k" else f"--{name.replace('_', '-')}"): flags[name] for name in flags
    }
    words = [word for pair in named.items() for word in pair]
    return [sys.executable, "-m", "services", "clinic", "calibrate", *words]


def a_torn_line_is_done_again(flags: dict[str, str], policy: ScriptedPolicy) -> None:
    """As after a kill: what is left is worked, nothing else, and the outcome is the same."""
    out = Path(flags["out"])
    records = out / "records.jsonl"
    whole, first = records.read_bytes(), (out / "calibration.json").read_bytes()
    lines = whole.splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    rehearse(policy)

    run(settings(flags))

    assert len(policy.requests) == 2 * 3 * 2  # two problems, three trajectories, two turns
    assert records.read_bytes() == whole
    assert (out / "calibration.json").read_bytes() == first


def test_the_command_fits_and_writes_what_a_clinic_then_uses(
    flags: dict[str, str],
    policy: ScriptedPolicy,
    start_clinic: Callable[..., httpx.Client],
):
    rehearse(policy)
    out = Path(flags["out"])

    done = subprocess.run(command(flags), capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{NUM_PROBLEMS}/{NUM_PROBLEMS}" in done.stderr
    calibration = load_calibration(out / "calibration.json").calibration
    figures = calibration.held_out
    assert (calibration.problem_set, calibration.num_problems) == ("spots", NUM_PROBLEMS)
    assert (calibration.num_trajectories, calibration.weights_sha256) == (3, "a" * 64)
    assert figures.num_answered == figures.num_problems == NUM_PROBLEMS // 4
    assert calibration.num_fitted == NUM_PROBLEMS - figures.num_problems
    assert figures.ece_after < 0.1 < figures.ece_before
    assert str(round(figures.ece_after, 4)) in done.stdout
    report = json.loads((out / "report.json").read_text())
    # Where all three agree the answer is right: answering only those is without risk.
    assert report["risk_coverage_after"][0]["risk"] == 0.0
    assert report["risk_coverage_after"][-1]["coverage"] == 1.0
    for name in ("reliability.png", "risk_coverage.png"):
        with Image.open(out / name) as drawn:
            assert len(drawn.convert("RGB").getcolors(2**20) or []) > 20
    a_torn_line_is_done_again(flags, policy)

    clinic = start_clinic(calibration=out / "calibration.json")
    policy.rehearse(*ALL_THREE, *TWO_OF_THREE)
    sure, unsure = ask(clinic).json(), ask(clinic).json()
    assert (sure["status"], sure["calibration"]["problem_set"]) == ("answered", "spots")
    assert sure["confidence"] > 0.9
    assert (unsure["abstention"], unsure["answer"]) == ("low_confidence", None)
    assert unsure["confidence"] < 0.1


def test_a_folder_of_another_calibration_is_not_continued(
    flags: dict[str, str], policy: ScriptedPolicy
):
    rehearse(policy)
    with pytest.raises(CalibrationError, match=r"right and \d wrong answers to fit on"):
        run(settings(flags, limit=6))

    policy.weights_sha256 = "b" * 64
    with pytest.raises(CalibrationError, match=r"weights_sha256 was 'aaa.*--fresh"):
        run(settings(flags, limit=6))
    policy.weights_sha256 = None
    with pytest.raises(CalibrationError, match="cannot say which weights"):
        run(settings(flags, limit=6))


def test_a_policy_that_is_swapped_meanwhile_ends_the_calibration(
    flags: dict[str, str], policy: ScriptedPolicy
):
    rehearse(policy)
    with pytest.raises(CalibrationError):  # too few, but recorded
        run(settings(flags, limit=6))
    records = Path(flags["out"]) / "records.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:4]))

    policy.sampling_version = 8  # the next token comes from other weights than are described
    with pytest.raises(CalibrationError, match="changed its weights"):
        run(settings(flags, limit=6))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["calibrate"], "problems: Field required"),
        (["calibrate", "--problems", "x", "-k", "17"], "less than or equal to 16"),
        (["calibrate", "--problems", "x", "--held-out", "1"], "less than 1"),
        (["colour"], "no command 'colour'; there are serve, calibrate"),
    ],
)
def test_a_wrong_command_line_ends_with_a_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code, says in capsys.readouterr().err) == (2, True)


def test_what_is_no_problem_set_is_said_to_be_none():
    command = [sys.executable, "-m", "services", "clinic", "calibrate", "--problems", "/nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "error: /nowhere is not a problem set: it has no manifest.json\n"
