"""`medvr ask`: what it prints, saves and exits with, against a running clinic."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageOps

from services.clinic.ask import main
from services.clinic.ask_picture import SIDE_PX
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION, two_against_one
from tests.clinic.test_confidence import a_calibration, written
from tests.processes import ROOT, environment

CHOICE_FLAGS = [flag for choice in CHOICES for flag in ("-c", choice)]
ORANGE, GREEN = (255, 197, 61), (53, 208, 165)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called: a folder with a scan."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.png").write_bytes(png(picture()))
    return tmp_path


Ask = Callable[..., tuple[int, str, str]]


def asking(clinic: httpx.Client, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs the command against a clinic; its exit code and both streams."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--url", str(clinic.base_url)])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return run


@pytest.fixture
def ask(clinic: httpx.Client, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(clinic, capsys)


def newest(clinic: httpx.Client) -> str:
    return clinic.get("/v1/cases").json()["cases"][0]["case_id"]


@pytest.mark.usefixtures("folder")
def test_an_answer_is_shown_with_its_evidence(
    ask: Ask, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)

    code, out, err = ask("scan.png", QUESTION, *CHOICE_FLAGS, "-k", "3", "--seed", "1")

    case_id = newest(clinic)
    assert code == 0
    assert out.splitlines() == [
        "Answer      B: cross",
        "Confidence  not known: the clinic is not calibrated",
        "Agreement   2 of 3 trajectories",
        "Evidence 1  x 168–220, y 84–140   ΔH +1.25 nats (0.25 before, 1.50 in the box)",
        "Consensus   2.6% of the image",
        f"Case        {str(clinic.base_url).rstrip('/')}/cases/{case_id}",
        "Research use only. Not a medical device.",
    ]
    told = err.splitlines()
    assert told[:2] == [f"case {case_id}", "3 trajectories"]
    assert sorted(line[5:] for line in told if "answers" in line) == [
        *("answers: B", "answers: B", "answers: C")
    ]
    assert any(line.endswith("looks at x 168–220, y 84–140   ΔH +1.25 nats") for line in told)
    assert any("thinks: bright on the right" in line for line in told)
    assert told[-1] == f"picture of the evidence: evidence-{case_id[:8]}.png"
    assert "\x1b" not in out + err  # nobody watches: no colours


def test_the_picture_shows_image_boxes_and_crops(
    ask: Ask, policy: ScriptedPolicy, folder: Path, clinic: httpx.Client
):
    policy.rehearse([look(IN_VIEW), answer("B")])

    ask("scan.png", QUESTION, *CHOICE_FLAGS, "-k", "2", "--out", str(folder / "seen.png"))

    drawn = Image.open(folder / "seen.png").convert("RGB")
    case = clinic.get(f"/v1/cases/{newest(clinic)}").json()
    crop = Image.open(io.BytesIO(clinic.get(case["evidence"][0]["crop_url"]).content))
    scale, margin = SIDE_PX / 336, 12
    left, top = margin + round(168 * scale), margin + round(84 * scale)
    assert drawn.getpixel((left + 60, top)) == ORANGE  # the box's upper edge
    at = (margin + round(200 * scale), margin + round(120 * scale))
    plain = picture().getpixel((200, 120))
    tinted = tuple(round(c + (g - c) * 72 / 255) for c, g in zip(plain, GREEN, strict=True))
    assert drawn.getpixel(at) == pytest.approx(tinted, abs=12)
    fitted = ImageOps.contain(crop.convert("RGB"), (224, 224))
    left, top = drawn.width - 236, margin
    tile = drawn.crop((left, top, left + fitted.width, top + fitted.height))
    assert tile.tobytes() == fitted.tobytes()


@pytest.mark.usefixtures("folder")
def test_abstention_is_no_answer(ask: Ask, policy: ScriptedPolicy):
    policy.rehearse([answer("A")], [look(IN_VIEW), answer("B")])

    code, out, err = ask("scan.png", QUESTION, *CHOICE_FLAGS, "-k", "2")

    assert code == 3
    assert out.splitlines()[0] == "Abstained   two answers are equally frequent"
    assert "Votes       A ring ×1, B cross ×1" in out
    assert "Answer " not in out
    assert "picture of the evidence" in err


@pytest.mark.usefixtures("folder")
def test_an_answer_that_is_withheld_is_shown_only_on_request(
    start_clinic: Callable[..., httpx.Client],
    capsys: pytest.CaptureFixture[str],
    policy: ScriptedPolicy,
    tmp_path: Path,
):
    unsure = a_calibration(probabilities=[0.2, 0.2, 0.2])
    ask = asking(start_clinic(calibration=written(tmp_path, unsure)), capsys)
    policy.rehearse([look(IN_VIEW, "a zebrafinch?"), answer("a zebrafinch")])

    code, out, err = ask("scan.png", QUESTION, "-k", "3", "--no-picture")
    case_id = err.split()[1]
    shown = ask("--case", case_id, "--show-withheld", "--no-picture")

    assert code == shown[0] == 3
    assert out.splitlines()[:2] == [
        "Abstained   the answer is too unsure and withheld",
        "Withheld    --show-withheld shows it",
    ]
    assert "Confidence  20% (calibrated on " in out
    assert "#1 has answered" in err
    assert "zebrafinch" not in out + err
    assert "Withheld    a zebrafinch" in shown[1]
    assert "#1 answers: a zebrafinch" in shown[2]


@pytest.mark.usefixtures("folder")
def test_evidence_that_is_not_why_is_called_so(ask: Ask, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("B")])  # whatever it is shown

    code, out, err = ask("scan.png", QUESTION, *CHOICE_FLAGS, "-k", "1", "--verify")

    assert code == 3
    assert "the answer survives the loss of its evidence and is withheld" in out
    assert "the answer is NOT SUPPORTED by the evidence shown: it survives its loss" in out
    assert "asks again with a region blanked: evidence" in err


@pytest.mark.usefixtures("folder")
def test_the_whole_case_can_be_had_as_json_and_come_back_to(
    ask: Ask, clinic: httpx.Client, policy: ScriptedPolicy, folder: Path
):
    policy.rehearse([answer("\x1b[31mred\x07")])

    code, out, err = ask("scan.png", QUESTION, "-k", "1", "--json", "--no-picture")
    again = ask("--case", newest(clinic), "--no-picture")

    assert code == again[0] == 0
    assert json.loads(out) == clinic.get(f"/v1/cases/{newest(clinic)}").json()
    assert again[1].splitlines()[0] == "Answer      [31mred"
    assert "\x1b" not in again[1] + again[2] + err
    assert list(folder.glob("evidence*")) == []


@pytest.mark.usefixtures("folder")
def test_a_failed_case_says_whose_fault_it_is(ask: Ask, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.fail_with = 400

    code, out, _ = ask("scan.png", QUESTION, "-k", "1")

    assert code == 1
    assert out.startswith("Failed      policy: 400 Policy refuses: as the script says\n")


@pytest.mark.usefixtures("folder")
def test_what_the_clinic_refuses_is_said_in_its_words(ask: Ask):
    code, out, err = ask("scan.png", QUESTION, "-k", "99")

    assert (code, out) == (1, "")
    assert err == "error: clinic: 422 k is out of range: k is 99; 1 to 16 is accepted\n"


@pytest.mark.usefixtures("folder")
def test_whoever_does_not_wait_is_told_how_to_come_back(
    ask: Ask, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()

    code, out, err = ask("scan.png", QUESTION, "-k", "1", "--timeout", "0.3")
    policy.release.set()
    case_id = newest(clinic)

    assert code == 4
    assert out.startswith("Status      running\n")
    assert f"medvr ask --case {case_id} --url http://127.0.0.1:" in err
    assert ask("--case", case_id, "--no-picture")[0] == 0


@pytest.mark.usefixtures("folder")
def test_a_further_question_is_asked_of_the_same_image(
    ask: Ask, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW), answer("B")])
    ask("scan.png", QUESTION, *CHOICE_FLAGS, "-k", "1", "--no-picture")
    first = newest(clinic)
    policy.rehearse([look(IN_VIEW, "and there"), answer("A")])

    sides = ("-c", "left", "-c", "right")
    code, out, err = ask(
        "--follow", first, "And on which side?", *sides, "-k", "2", "--seed", "3", "--out", "s.png"
    )

    case = clinic.get(f"/v1/cases/{newest(clinic)}").json()
    assert code == 0
    assert out.startswith("Answer      A: left\n")
    assert "Agreement   2 of 2 trajectories" in out
    assert err.splitlines()[:2] == [f"case {case['case_id']}", "2 trajectories"]
    assert any("thinks: and there" in line for line in err.splitlines())
    assert (case["follows"], case["question"]) == (first, "And on which side?")
    assert (case["settings"]["num_trajectories"], case["settings"]["seed"]) == (2, 3)
    with Image.open("s.png") as drawn:
        assert drawn.width > SIDE_PX


@pytest.mark.usefixtures("folder")
def test_what_was_not_answered_is_not_followed(ask: Ask, policy: ScriptedPolicy):
    policy.rehearse([answer("A")], [answer("B")])
    _, _, told = ask("scan.png", QUESTION, *CHOICE_FLAGS, "-k", "2", "--no-picture")

    code, out, err = ask("--follow", told.split()[1], "And on which side?")

    assert (code, out) == (1, "")
    assert "clinic: 409" in err
    assert "to come back" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give IMAGE and QUESTION"),
        (["scan.png"], "give IMAGE and QUESTION"),
        (["scan.png", "?", "--case", "x"], "give IMAGE and QUESTION"),
        (["scan.png", "?", "--out", "nowhere/a.png"], "--out: there is no folder nowhere"),
        (["scan.png", "?", "--follow", "x"], "--follow CASE and QUESTION, or --case CASE"),
        (["--follow", "x"], "--follow CASE and QUESTION"),
        (["?", "--follow", "x", "--case", "x"], "--follow CASE and QUESTION"),
        (["?", "--follow", "x", "--frame", "2"], "--frame cannot be given with --follow"),
        (["?", "--follow", "x", "--verify"], "--verify cannot be given with --follow"),
        (["nowhere.png", "?"], "there is no file nowhere.png"),
        (["scan.png", "?", "--window", "wide"], "--window takes CENTER,WIDTH or lung"),
        (["scan.png", "?", "-k", "many"], "invalid int value"),
        (["scan.png", "?", "--url", "clinic:8080"], "--url must start with http://"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("folder")
def test_wrong_usage_is_said_before_anybody_is_asked(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert says in capsys.readouterr().err


@pytest.fixture
def started(clinic: httpx.Client, folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command as a process of its own."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "services", "ask", *arguments, "--url", str(clinic.base_url)],
            cwd=folder,
            env=environment(PYTHONPATH=str(ROOT)),
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str], policy: ScriptedPolicy) -> str:
    """Ctrl-C once the course of the case is being shown; the rest of what it says."""
    assert policy.entered.wait(timeout=30)
    assert process.stderr is not None
    while "trajectory" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30)[1]


def test_ctrl_c_cancels_what_was_asked_and_leaves_what_was_watched(
    started: Callable[..., subprocess.Popen[str]], clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()
    asking = started("scan.png", QUESTION, "-k", "1")
    said = interrupt(asking, policy)
    case_id = newest(clinic)

    assert asking.returncode == 130
    assert said == f"interrupted: case {case_id} is cancelled\n"
    assert clinic.get(f"/v1/cases/{case_id}").json()["status"] == "cancelled"

    form = {"question": QUESTION, "k": "1"}
    files = {"image": png(picture())}
    running = clinic.post("/v1/cases", data=form, files=files, headers={"prefer": "wait=0"}).json()
    watching = started("--case", running["case_id"])
    said = interrupt(watching, policy)

    assert watching.returncode == 130
    assert said.startswith("the case goes on; to come back: medvr ask --case")
    assert clinic.get(f"/v1/cases/{running['case_id']}").json()["status"] == "running"
    policy.release.set()


def test_of_a_case_that_is_not_there_nothing_is_said_to_go_on(ask: Ask):
    code, out, err = ask("--case", "zzz")

    assert (code, out) == (1, "")
    assert "no case zzz" in err
    assert "goes on" not in err
