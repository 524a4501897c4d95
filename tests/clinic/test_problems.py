"""What goes wrong, and how a caller is told: problem documents, failed cases, limits, silence."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from shared.service.logs import JsonFormatter
from tests.clinic.conftest import served
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import ask

StartClinic = Callable[..., httpx.Client]


def problem_of(response: httpx.Response) -> tuple[int, str, str]:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    return response.status_code, body["title"], body["detail"]


def no_case_was_made(clinic: httpx.Client) -> bool:
    return clinic.get("/v1/cases").json()["cases"] == []


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"question": None}, "body.question: Field required"),
        ({"question": "  \n "}, "must have at least one character"),
        ({"question": "x" * 2001}, "has 2001 characters; at most 2000"),
        ({"question": "Is it <|im_end|> so?"}, "reserved for the model"),
        ({"choices": ["one"]}, "give two or more"),
        ({"choices": ["one", " "]}, "choice 2 must have at least one character"),
        ({"choices": ["ring", "Ring "]}, "each must differ"),
        ({"choices": ["one", "y" * 501]}, "choice 2 has 501 characters; at most 500"),
        ({"choices": [str(n) for n in range(27)]}, "27 choices given; at most 26"),
        ({"choices": ["one", "<|image_pad|>"]}, "choice 2 holds text of the form"),
        ({"k": "0"}, "k is 0; 1 to 16"),
        ({"k": "17"}, "k is 17; 1 to 16"),
        ({"k": "many"}, "body.k: Input should be a valid integer"),
        ({"seed": "-1"}, "0 to 9007199254740991"),
    ],
)
def test_a_form_that_cannot_be_asked_is_explained(
    clinic: httpx.Client, form: dict[str, Any], said: str
):
    status, _, detail = problem_of(ask(clinic, **form))

    assert status == 422
    assert said in detail
    assert no_case_was_made(clinic)


def test_a_form_without_an_image_is_explained(clinic: httpx.Client):
    response = clinic.post("/v1/cases", data={"question": "What?"})
    assert problem_of(response)[::2] == (422, "body.image: Field required")


def test_an_empty_image_is_explained(clinic: httpx.Client):
    assert problem_of(ask(clinic, image=b""))[1] == "The image is empty"


@pytest.mark.parametrize("image", [b"this is no image at all", png(picture())[:400]])
def test_a_bad_image_is_answered_with_what_zoom_said(
    clinic: httpx.Client, surroundings: Any, image: bytes
):
    said = httpx.post(
        f"{surroundings.zoom_url}/v1/images", content=image, timeout=60, trust_env=False
    )

    status, title, detail = problem_of(ask(clinic, image=image))

    assert status == said.status_code
    assert 400 <= status < 500
    assert title == "The image cannot be used"
    assert said.json()["detail"] in detail
    assert no_case_was_made(clinic)


def test_an_upload_over_the_limit_is_refused(start_clinic: StartClinic):
    clinic = start_clinic(max_upload_bytes=2000)

    status, _, detail = problem_of(ask(clinic, image=b"x" * 2001))

    assert (status, detail) == (413, "the image file has 2001 bytes; at most 2000 are accepted")
    assert no_case_was_made(clinic)


def test_a_body_far_over_the_limit_is_refused_without_being_kept(start_clinic: StartClinic):
    clinic = start_clinic(max_upload_bytes=2000)

    def endless() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 65536

    response = clinic.post(
        "/v1/cases", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"}
    )

    status, _, detail = problem_of(response)
    assert status == 413
    assert "1050576 bytes" in detail


def test_an_image_too_elongated_to_be_shown_fails_with_that_reason(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])

    case = ask(clinic, image=png(Image.new("L", (4200, 20))), k="1").json()

    assert case["status"] == "failed"
    assert "too elongated" in case["failure"]["reason"]


@pytest.mark.parametrize(
    "path", ["", "/image", "/heatmap", f"/crops/{'0' * 64}"], ids=["case", "image", "heat", "crop"]
)
def test_an_unknown_case_is_not_found(clinic: httpx.Client, path: str):
    status, title, _ = problem_of(clinic.get(f"/v1/cases/no-such-id{path}"))
    assert (status, title) == (404, "No such case")


def test_an_unknown_page_start_is_not_found(clinic: httpx.Client):
    assert problem_of(clinic.get("/v1/cases?before=nobody"))[0] == 404
    assert problem_of(clinic.get("/v1/cases?limit=0"))[0] == 422


def test_only_the_crops_of_a_case_are_served_through_it(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look([84, 42, 110, 70]), answer("A")])
    first = ask(clinic, k="1").json()
    policy.rehearse([answer("A")])
    second = ask(clinic, k="1").json()
    crop = first["evidence"][0]["crop"]

    assert clinic.get(f"/v1/cases/{first['case_id']}/crops/{crop}").status_code == 200
    assert problem_of(clinic.get(f"/v1/cases/{second['case_id']}/crops/{crop}"))[0] == 404


def test_a_policy_that_refuses_makes_a_failed_case(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.fail_with = 400

    response = ask(clinic, k="2")
    case = response.json()

    assert response.status_code == 201
    assert case["status"] == "failed"
    assert case["failure"] == {
        "service": "policy",
        "reason": "400 Policy refuses: as the script says",
    }
    assert case["finished_at"] is not None
    assert clinic.get(f"/v1/cases/{case['case_id']}").json() == case


def test_a_dead_cca_makes_a_failed_case_that_names_it(
    start_clinic: StartClinic, policy: ScriptedPolicy, free_port: Callable[[], int]
):
    clinic = start_clinic(cca_url=f"http://127.0.0.1:{free_port()}")
    policy.rehearse([answer("A")])

    case = ask(clinic, k="1").json()

    assert (case["status"], case["failure"]["service"]) == ("failed", "cca")
    assert "did not answer" in case["failure"]["reason"]
    ready = clinic.get("/ready")
    assert (ready.status_code, list(ready.json()["failures"])) == (503, ["cca"])


def test_a_case_waits_for_a_neighbour_that_comes_back(
    start_clinic: StartClinic, policy: ScriptedPolicy, free_port: Callable[[], int]
):
    port = free_port()
    clinic = start_clinic(cca_url=f"http://127.0.0.1:{port}", patience_s=60)
    policy.rehearse([answer("A")])
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(ask, clinic, k="1")
        deadline = time.monotonic() + 60
        while policy.num_entered < 2:  # the first attempt found no cca
            assert time.monotonic() < deadline, "it was not tried again"
            time.sleep(0.05)
        with served(create_cca(CcaSettings()), port):
            case = asked.result(timeout=60).json()

    assert (case["status"], case["answer"]) == ("answered", "A")


def test_a_dead_zoom_is_a_problem_and_no_case(
    start_clinic: StartClinic, free_port: Callable[[], int]
):
    clinic = start_clinic(zoom_url=f"http://127.0.0.1:{free_port()}")

    status, title, detail = problem_of(ask(clinic))

    assert (status, title) == (503, "A dependency failed")
    assert detail.startswith("zoom:")
    assert no_case_was_made(clinic)


def test_a_case_that_takes_too_long_fails(start_clinic: StartClinic, policy: ScriptedPolicy):
    clinic = start_clinic(case_timeout_s=0.5)
    policy.rehearse([answer("A")])
    policy.release.clear()

    case = ask(clinic, k="1").json()
    policy.release.set()

    assert case["failure"] == {"service": "clinic", "reason": "not answered within 0.5 s"}


def test_cases_over_the_limit_wait(start_clinic: StartClinic, policy: ScriptedPolicy):
    clinic = start_clinic(max_concurrent_cases=1)
    policy.rehearse([answer("A")])
    policy.release.clear()
    cases: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: cases.append(ask(clinic, k="1").json())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_for_metric(clinic, "medvr_clinic_unfinished_cases 2.0")
    assert policy.entered.wait(timeout=10)
    assert policy.num_entered == 1
    time.sleep(1)

    policy.release.set()
    for thread in threads:
        thread.join(timeout=30)

    assert [case["status"] for case in cases] == ["answered", "answered"]
    waited = sorted(case["timings"]["waiting_s"] for case in cases)
    assert waited[0] < 0.9 < waited[1]


def wait_for_metric(clinic: httpx.Client, line: str) -> None:
    for _ in range(200):
        if line in clinic.get("/metrics").text:
            return
        threading.Event().wait(0.05)
    pytest.fail(f"{line!r} never appeared in /metrics")


def test_a_caller_who_hangs_up_stops_nothing(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.release.clear()
    impatient = httpx.Client(base_url=clinic.base_url, timeout=1.0, trust_env=False)
    with impatient, pytest.raises(httpx.ReadTimeout):
        ask(impatient, k="1")
    [line] = clinic.get("/v1/cases").json()["cases"]
    assert line["status"] == "running"

    policy.release.set()

    wait_for_metric(clinic, 'medvr_clinic_cases_total{status="answered"} 1.0')
    assert clinic.get(line["url"]).json()["answer"] == "A"


def test_the_metrics_count_cases_stages_and_agreement(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")], [answer("B")], [answer("B")])
    ask(clinic, k="3")
    policy.rehearse([answer("A")], [answer("B")])
    ask(clinic, k="2")

    metrics = clinic.get("/metrics").text

    assert 'medvr_clinic_cases_total{status="answered"} 1.0' in metrics
    assert 'medvr_clinic_cases_total{status="abstained"} 1.0' in metrics
    assert 'medvr_clinic_stage_seconds_count{stage="trajectories"} 2.0' in metrics
    assert "medvr_clinic_agreement_count 2.0" in metrics
    assert 'medvr_clinic_agreement_bucket{le="0.5"} 1.0' in metrics


def test_no_word_of_a_case_reaches_the_logs_or_the_metrics(
    clinic: httpx.Client, policy: ScriptedPolicy, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    secret = "zebrafinch"
    policy.rehearse([look([84, 42, 110, 70], f"a {secret} thought"), answer(secret)])
    answered = ask(clinic, k="1", choices=None, question=f"Is it a {secret}?").json()
    policy.fail_with = 400
    failed = ask(clinic, k="1", question=f"Is it a {secret}?", choices=[secret, "b"]).json()
    policy.fail_with = None
    refused = ask(clinic, question=f"{secret} <|im_end|>")
    broken = ask(clinic, image=f"{secret} is no image".encode())

    assert (answered["status"], failed["status"]) == ("answered", "failed")
    assert (refused.status_code, broken.status_code // 100) == (422, 4)
    formatter = JsonFormatter("clinic")
    lines = [formatter.format(record) for record in caplog.records]
    assert any('"case ended"' in line for line in lines)
    assert any('"case failed"' in line for line in lines)
    assert [line for line in lines if secret in line] == []
    assert secret not in clinic.get("/metrics").text


def test_ready_when_policy_zoom_and_cca_answer(clinic: httpx.Client):
    response = clinic.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
