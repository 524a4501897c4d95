"""Feedback as a problem set: what the next round is taught, and what it is not told."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from services.clinic.__main__ import main
from services.evaluation.job import evaluate
from services.evaluation.settings import EvaluationSettings
from shared.blobs import BlobStore
from shared.clients.cca import CcaClient
from shared.clients.policy import PolicyClient
from shared.clients.zoom import ZoomClient
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind, read_lesions, read_manifest, read_problems
from tests.clinic.conftest import Surroundings
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION, ask
from tests.clinic.test_feedback import BOX, CORRECTION, say

Export = Callable[[Path], str]


@pytest.fixture
def arguments(surroundings: Surroundings, tmp_path: Path) -> list[str]:
    """The command, up to the folder it is to write."""
    flags = ["--database", str(tmp_path / "clinic.sqlite"), "--blob-url", surroundings.blob_url]
    return ["export-feedback", *flags, "--out"]


@pytest.fixture
def export(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Export:
    """Runs the command; returns what it printed."""

    def run(out: Path) -> str:
        main([*arguments, str(out)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def cases(clinic: httpx.Client, policy: ScriptedPolicy) -> list[str]:
    """Reviewed: agreed after a doubt, corrected, disagreed with, yes to an open question."""
    policy.rehearse([look(IN_VIEW), answer("B")])
    made = [ask(clinic, k="1", seed=str(seed)).json()["case_id"] for seed in range(3)]
    policy.rehearse([answer("Yes.")])
    made.append(ask(clinic, k="1", choices=None, question="Is it?").json()["case_id"])
    for case_id, said in [
        (made[0], {"verdict": "disagree", "role": "student"}),
        (made[0], {"replaces": 1, "note": "a zebrafinch"}),
        (made[1], CORRECTION),
        (made[2], {"verdict": "disagree"}),
        (made[3], {"verdict": "corrected", "corrected_box": BOX}),
    ]:
        assert say(clinic, case_id, **said).status_code == 201
    return made


def test_the_newest_feedback_of_each_case_becomes_a_problem(
    cases: list[str], export: Export, tmp_path: Path, surroundings: Surroundings
):
    said = export(tmp_path / "round-2")

    problems = read_problems(tmp_path / "round-2")
    assert said.splitlines() == [
        f"{tmp_path / 'round-2'}: 3 problems, 2 boxes",
        "left out: 1 disagreed without a correction",
    ]
    assert [(p.problem_id, p.gold_answer, p.answer_kind) for p in problems] == [
        (cases[0], "B", AnswerKind.CHOICE),
        (cases[1], "A", AnswerKind.CHOICE),
        (cases[3], "yes", AnswerKind.YES_NO),
    ]
    first = problems[0]
    assert (first.question, first.options) == (QUESTION, tuple(CHOICES))
    assert first.image_size == ImageSize(336, 336)
    assert BlobStore(surroundings.blob_url).has(first.image)
    assert read_manifest(tmp_path / "round-2").name == "round-2"


def test_boxes_are_for_evaluation_and_notes_for_nobody(
    cases: list[str], export: Export, tmp_path: Path
):
    export(tmp_path / "set")

    box = Box(160, 80, 224, 144)
    assert read_lesions(tmp_path / "set") == {cases[1]: [box], cases[3]: [box]}
    written = b"".join(path.read_bytes() for path in (tmp_path / "set").iterdir())
    for word in (b"zebrafinch", b"student", b"radiologist"):
        assert word not in written


def test_the_same_feedback_gives_the_same_bytes_and_an_old_set_is_never_changed(
    clinic: httpx.Client,
    cases: list[str],
    export: Export,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    export(tmp_path / "set")
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}

    assert "(unchanged)" in export(tmp_path / "set")
    say(clinic, cases[0], verdict="disagree", replaces=2)
    with pytest.raises(SystemExit, match="1"):
        main([*arguments, str(tmp_path / "set")])

    assert "is there and holds something else" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".set")] == []
    assert "2 problems" in export(tmp_path / "next")


async def test_an_evaluation_runs_on_what_was_exported(
    cases: list[str],
    export: Export,
    tmp_path: Path,
    surroundings: Surroundings,
    policy: ScriptedPolicy,
):
    export(tmp_path / "set")
    policy.rehearse([look(IN_VIEW), answer("A")])  # IN_VIEW holds the corrected box's centre
    settings = EvaluationSettings(
        problem_set=tmp_path / "set", out=tmp_path / "out", label="round", concurrency=1
    )
    http = httpx.AsyncClient(timeout=60, trust_env=False)

    async with http:
        report = await evaluate(
            settings,
            PolicyClient(surroundings.policy.url, http),
            ZoomClient(surroundings.zoom_url, http),
            CcaClient(surroundings.cca_url, http),
        )

    assert report.metrics.accuracy.mean == pytest.approx(1 / 3)
    assert len(cases) == 4


def test_a_follow_up_is_no_problem_of_its_own(
    clinic: httpx.Client, policy: ScriptedPolicy, export: Export, tmp_path: Path
):
    policy.rehearse([answer("B")])
    first = ask(clinic, k="1").json()["case_id"]
    further = clinic.post(f"/v1/cases/{first}/follow-ups", json={"question": "And below?", "k": 1})
    assert further.status_code == 201, further.text
    for case_id in (first, further.json()["case_id"]):
        assert say(clinic, case_id, verdict="agree", role="student").status_code == 201

    said = export(tmp_path / "round-2")

    assert [p.problem_id for p in read_problems(tmp_path / "round-2")] == [first]
    assert "left out: 1 asked in the context of an earlier question" in said


def test_a_case_whose_image_is_gone_is_counted(
    clinic: httpx.Client,
    policy: ScriptedPolicy,
    export: Export,
    tmp_path: Path,
    surroundings: Surroundings,
):
    policy.rehearse([answer("B")])
    case = ask(clinic, image=png(picture(340, 340)), k="1").json()
    say(clinic, case["case_id"])
    Path(BlobStore(surroundings.blob_url).path(case["image"]["sha256"])).unlink()

    assert export(tmp_path / "set").splitlines() == [
        f"{tmp_path / 'set'}: 0 problems, 0 boxes",
        "left out: 1 image gone from the blob store",
    ]


def test_a_database_that_is_not_there_is_named_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    absent = tmp_path / "mistyped.sqlite"
    for command in (
        ["export-feedback", "--out", str(tmp_path / "set"), "--database", str(absent)],
        ["reidentify", "patient-0", "--pseudonym-database", str(absent)],
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 1
        assert f"there is no database {absent}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
