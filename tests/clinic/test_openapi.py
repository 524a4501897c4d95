"""The OpenAPI document: every route has examples, and the examples are what the code returns."""

from typing import Any

import httpx
import pytest

from shared.api.clinic import Case, CasePage, ClinicDescription


@pytest.fixture
def document(clinic: httpx.Client) -> dict[str, Any]:
    return clinic.get("/openapi.json").json()


def example(document: dict[str, Any], path: str, method: str, status: str) -> Any:
    response = document["paths"][path][method]["responses"][status]
    return response["content"]["application/json"]["example"]


def test_every_response_of_every_case_route_has_an_example(document: dict[str, Any]):
    routes = {
        f"{method} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/v1/")
    }

    assert set(routes) == {
        "post /v1/cases",
        "post /v1/cases/{case_id}/cancel",
        "post /v1/cases/{case_id}/follow-ups",
        "get /v1/cases/{case_id}/events",
        "get /v1/cases",
        "get /v1/cases/{case_id}",
        "get /v1/cases/{case_id}/image",
        "get /v1/cases/{case_id}/crops/{crop}",
        "get /v1/cases/{case_id}/blanked/{region}",
        "get /v1/cases/{case_id}/heatmap",
        "post /v1/cases/{case_id}/feedback",
        "get /v1/cases/{case_id}/feedback",
        "get /v1/clinic",
        "post /v1/jobs",
        "get /v1/jobs",
        "get /v1/jobs/{job_id}",
        "post /v1/jobs/{job_id}/cancel",
    }
    for name, operation in routes.items():
        for status, response in operation["responses"].items():
            if status == "204":
                continue
            [content] = response["content"].values()
            assert content.get("example") or content.get("examples"), f"{name} {status}"


def test_the_examples_are_valid(document: dict[str, Any]):
    answered = Case.model_validate(example(document, "/v1/cases", "post", "201"))
    page = CasePage.model_validate(example(document, "/v1/cases", "get", "200"))
    limits = ClinicDescription.model_validate(example(document, "/v1/clinic", "get", "200"))

    assert answered.option_text == answered.choices["ABC".index(answered.answer or "")]
    assert answered.notice == "Research use only. Not a medical device."
    assert page.cases[0].case_id == answered.case_id
    assert limits.max_trajectories == 16


def test_errors_are_documented_as_problem_documents(document: dict[str, Any]):
    responses = document["paths"]["/v1/cases"]["post"]["responses"]

    assert sorted(responses) == [
        *("201", "202", "400", "409", "413", "415", "422", "503", "default")
    ]
    for status in ("400", "409", "413", "415", "422", "503"):
        [media_type] = responses[status]["content"]
        assert media_type == "application/problem+json"


def test_limits_are_those_of_the_settings(clinic: httpx.Client):
    description = ClinicDescription.model_validate(clinic.get("/v1/clinic").json())
    assert (description.default_trajectories, description.max_upload_bytes) == (5, 8 * 2**20)


def test_pages_allow_nothing_from_elsewhere(clinic: httpx.Client):
    for path in ("/", "/cases/any", "/static/case.js", "/v1/clinic"):
        response = clinic.get(path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        assert response.headers["x-content-type-options"] == "nosniff"
    assert clinic.get("/docs").status_code == 404
