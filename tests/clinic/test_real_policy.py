"""The clinic with nothing scripted: vLLM with the shipped base policy, zoom, cca, a browser."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from services.clinic.address import DatabaseAddress
from services.clinic.app import create_app
from services.clinic.ask import main as medvr_ask
from services.clinic.settings import ClinicSettings
from services.problems.phantoms import OPTIONS, QUESTION, render_phantom
from services.zoom.app import create_app as create_zoom
from services.zoom.settings import ZoomSettings
from shared.api.policy import GenerateRequest, ImageSegment, TextSegment
from shared.geometry import Box, PixelLimits
from shared.render import encode_png, show_region
from shared.weights import weights_sha256
from tests.clinic.browser import opened_viewer
from tests.clinic.conftest import served
from tests.clinic.pictures import png
from tests.fixtures_policy import RunningPolicy, run_policy_server
from tests.zoom.files import canary_dataset, file_of

BASE = Path(__file__).parents[2] / "services" / "trainer" / "tiny" / "base"
PHANTOM = render_phantom("brain", seed=11, index=0)

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def policy(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[RunningPolicy]:
    """A real policy that says all it has to say."""
    folder = tmp_path_factory.mktemp("real-policy")
    with run_policy_server(BASE, folder, free_port(), "--log-level", "DEBUG") as policy:
        yield policy


@pytest.fixture(scope="module")
def real_settings(
    policy: RunningPolicy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClinicSettings]:
    """Settings of a clinic whose neighbours are real, the policy too."""
    folder = tmp_path_factory.mktemp("clinic")
    with (
        served(create_zoom(ZoomSettings(blob_url=policy.blob_url))) as zoom_url,
        served(create_cca(CcaSettings())) as cca_url,
    ):
        yield ClinicSettings(
            policy_url=policy.url,
            zoom_url=zoom_url,
            cca_url=cca_url,
            blob_url=policy.blob_url,
            database=folder / "clinic.sqlite",
        )


@pytest.fixture(scope="module")
def clinic(real_settings: ClinicSettings) -> Iterator[httpx.Client]:
    """A clinic among them."""
    with (
        served(create_app(real_settings)) as url,
        httpx.Client(base_url=url, timeout=300, trust_env=False) as client,
    ):
        yield client


def ask(clinic: httpx.Client, **form: Any) -> dict[str, Any]:
    files = {"image": ("scan.png", png(PHANTOM.image), "image/png")}
    fields = {"question": QUESTION, "choices": list(OPTIONS), "k": "5", "seed": "3"} | form
    response = clinic.post("/v1/cases", data=fields, files=files)
    assert response.status_code == 201, response.text
    return response.json()


def test_the_clinic_is_ready_once_the_policy_is(clinic: httpx.Client):
    assert clinic.get("/ready").json() == {"status": "ready"}


def test_five_trajectories_of_the_real_policy_end_in_a_case(clinic: httpx.Client):
    case = ask(clinic)

    assert case["status"] in ("answered", "abstained"), case["failure"]
    assert (case["policy"]["run"], case["policy"]["versions"]) == ("base", [0])
    assert len(case["attempts"]) == 5
    answered = sum(attempt["answer"] is not None for attempt in case["attempts"])
    assert sum(case["votes"].values()) == answered
    assert any(attempt["boxes"] for attempt in case["attempts"]), "the base policy zooms"


def test_a_greedy_case_is_the_same_twice_and_its_crops_are_where_it_says(clinic: httpx.Client):
    first, second = ask(clinic, k="1"), ask(clinic, k="1")

    assert first["turns"] == [
        turn | {"mean_entropy_nats": pytest.approx(turn["mean_entropy_nats"], abs=1e-4)}
        for turn in second["turns"]
    ]
    boxes = first["attempts"][0]["boxes"]
    assert [zoom["box"] for zoom in first["evidence"]] == boxes
    assert boxes, "the base policy zooms"
    for zoom in first["evidence"]:
        box = Box(**zoom["box"])
        crop = clinic.get(zoom["crop_url"]).content
        size = Image.open(io.BytesIO(crop)).size
        limits = PixelLimits(28224, 28224)
        assert size == (zoom["crop_width_px"], zoom["crop_height_px"])
        assert crop == encode_png(show_region(PHANTOM.image, box, limits))
        rise = zoom["tool_entropy_nats"] - zoom["baseline_entropy_nats"]
        assert zoom["entropy_increase_nats"] == pytest.approx(rise)
        assert zoom["tool_entropy_nats"] > 0


def test_a_follow_up_is_answered_in_the_context_of_the_first_question(
    real_settings: ClinicSettings, tmp_path: Path
):
    """What vLLM was sent holds the earlier turns and their crops, and it took them."""
    sent: list[GenerateRequest] = []

    async def record(request: httpx.Request) -> None:
        if request.url.path == "/medvr/v1/generate":
            sent.append(GenerateRequest.model_validate_json(request.content))

    database = DatabaseAddress.of(tmp_path / "clinic.sqlite")
    settings = real_settings.model_copy(update={"database": database})
    http = httpx.AsyncClient(
        timeout=300,
        trust_env=False,
        event_hooks={"request": [record]},
        limits=httpx.Limits(max_keepalive_connections=0),  # its loop ends before it does
    )
    with (
        served(create_app(settings, http)) as url,
        httpx.Client(base_url=url, timeout=300, trust_env=False) as recorded,
    ):
        first = ask(recorded, k="1")
        num_before = len(sent)
        body = {"question": QUESTION, "choices": list(OPTIONS)[::-1], "k": 3, "seed": 5}
        second = recorded.post(f"/v1/cases/{first['case_id']}/follow-ups", json=body).json()

    assert first["status"] == "answered"
    assert second["status"] in ("answered", "abstained"), second["failure"]
    prompt = sent[num_before].segments
    images = [segment.image for segment in prompt if isinstance(segment, ImageSegment)]
    text = "".join(segment.text for segment in prompt if isinstance(segment, TextSegment))
    assert images[1:] == [zoom["crop"] for zoom in first["evidence"]]
    assert images[1:], "the base policy zooms"
    written = [text.index(turn["text"]) for turn in first["turns"]]
    assert written == sorted(written)
    assert text.count(QUESTION) == 2
    assert second["context"]["dropped"] == []


def test_the_command_shows_what_the_real_policy_did(
    clinic: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    scan, drawn = tmp_path / "scan.png", tmp_path / "evidence.png"
    scan.write_bytes(png(PHANTOM.image))
    choices = [flag for option in OPTIONS for flag in ("-c", option)]
    where = ["--url", str(clinic.base_url), "--out", str(drawn)]

    with pytest.raises(SystemExit) as end:
        medvr_ask([str(scan), QUESTION, *choices, "-k", "1", *where])
    out, err = capsys.readouterr()

    case = clinic.get(f"/v1/cases/{err.split()[1]}").json()
    assert (end.value.code, case["status"]) in ((0, "answered"), (3, "abstained"))
    assert f"Answer      {case['answer']}: {case['option_text']}" in out
    places = [f"x {z['box']['x1']}–{z['box']['x2']}" for z in case["evidence"]]
    assert places, "the base policy zooms"
    listed = [line for line in out.splitlines() if line.startswith("Evidence ")]
    assert [line.split("  ")[1].split(",")[0] for line in listed] == places
    assert "1 trajectory" in err
    with Image.open(drawn) as picture:
        assert picture.format == "PNG"


def test_the_real_policy_is_asked_again_without_its_evidence(clinic: httpx.Client):
    case = clinic.get(ask(clinic, verify="true", k="3")["links"]["self"] + "?show=withheld").json()
    found = case["verification"]

    assert case["status"] in ("answered", "abstained"), case["failure"]
    assert (found is None) == (case["answer"] is None)
    if found is not None and found["evidence_blanked"] is not None:
        without = found["evidence_blanked"]
        assert found["supported"] == without["changed"] == (without["answer"] != case["answer"])
        assert sum(without["votes"].values()) <= 3
        assert case["timings"]["evidence_blanked_s"] > 0
    digest = weights_sha256(BASE)
    assert digest is not None
    assert case["provenance"]["weights_sha256"] == digest
    sure = [a["answer_token_probability"] for a in case["attempts"] if a["answer"] is not None]
    assert all(0 < probability <= 1 for probability in sure)


def test_the_page_shows_what_the_real_policy_did(clinic: httpx.Client):
    with opened_viewer(str(clinic.base_url)) as viewer:
        viewer.open("/")
        viewer.fill(png(PHANTOM.image), QUESTION, list(OPTIONS), k=1)
        case = clinic.get(f"/v1/cases/{viewer.ask()}").json()
        drawn = viewer.boxes("evidence")

        assert viewer.page.locator("#steps > li").count() == max(1, len(case["turns"]))
        assert len(drawn) == len(case["evidence"])
        for box, zoom in zip(drawn, case["evidence"], strict=True):
            assert box == pytest.approx(zoom["box_normalised"], abs=1e-3)
        assert viewer.complaints == []


def test_the_policys_log_has_no_word_of_a_header_or_a_question(
    clinic: httpx.Client, policy: RunningPolicy
):
    """With one that the header tells, and one that nothing tells and that reaches the policy."""
    stored = np.kron(np.arange(100, dtype=np.uint16).reshape(10, 10), np.ones((20, 20), np.uint16))
    scan = file_of(canary_dataset("ZQXCANARY7", stored))
    question = f"Has Mr Zqxcanary7 or Mr Quetzal this? {QUESTION}"

    files = {"image": ("ZQXCANARY7.dcm", scan, "application/dicom")}
    fields = {"question": question, "choices": list(OPTIONS), "k": "1"}
    case = clinic.post("/v1/cases", data=fields, files=files).json()

    assert case["question"] == f"Has Mr [removed] or Mr Quetzal this? {QUESTION}"
    assert case["status"] in ("answered", "abstained")
    log = policy.log.read_bytes().lower()
    assert len(log) > 1000
    assert [word for word in (b"zqxcanary7", b"quetzal") if word in log] == []
