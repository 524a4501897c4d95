"""A further question about an answered case: what the policy is reminded of, what is refused."""

from typing import Any

import httpx
import pytest

from services.clinic.conversation import MAX_EARLIER
from shared.agent.prompt import prompt_after_image, prompt_before_image
from shared.agent.tools import ZOOM_IN
from shared.api.policy import GenerateRequest, ImageSegment, TextSegment
from tests.clinic.scripted_policy import Say, ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION, ask, two_against_one

FIRST = [look(IN_VIEW, "bright on the right"), answer("B")]


def follow_up(clinic: httpx.Client, case: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"question": "Is it on the left?", "choices": ["yes", "no"], "k": 1, "seed": 2} | fields
    return clinic.post(f"/v1/cases/{case['case_id']}/follow-ups", json=body)


def first_request(policy: ScriptedPolicy) -> GenerateRequest:
    """The first one since the last rehearsal."""
    return policy.requests[0]


def as_text(request: GenerateRequest) -> str:
    """The prompt as one string; an image is its name in braces."""
    said: list[str] = []
    for segment in request.segments:
        if isinstance(segment, TextSegment):
            said.append(segment.text)
        else:
            assert isinstance(segment, ImageSegment)
            said.append(f"{{{segment.image}}}")
    return "".join(said)


def asked_once(clinic: httpx.Client, policy: ScriptedPolicy, *plan: Say) -> dict[str, Any]:
    policy.rehearse(list(plan or FIRST))
    case = ask(clinic, k="1").json()
    assert case["status"] == "answered"
    return case


def test_the_policy_is_asked_in_the_context_of_what_was_said_and_shown(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    case = asked_once(clinic, policy)
    view = policy.requests[0].segments[1]
    assert isinstance(view, ImageSegment)
    policy.rehearse([answer("A")])

    response = follow_up(clinic, case)

    new = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/cases/{new['case_id']}"
    assert (new["answer"], new["option_text"]) == ("A", "yes")
    assert as_text(first_request(policy)) == (
        prompt_before_image((ZOOM_IN,))
        + f"{{{view.image}}}"
        + prompt_after_image(QUESTION, CHOICES)
        + FIRST[0].text
        + "<|im_end|>\n<|im_start|>user\n<tool_response>"
        + f"{{{case['evidence'][0]['crop']}}}"
        + " zoomed view of [84, 42, 110, 70]</tool_response><|im_end|>\n<|im_start|>assistant\n"
        + FIRST[1].text
        + "<|im_end|>\n<|im_start|>user\nIs it on the left? Options: A. yes B. no Think first, look"
        " closer where you are unsure, then answer.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert new["context"] == {
        "shown": [{"case_id": case["case_id"], "num_crops_shown": 1, "num_crops_dropped": 0}],
        "dropped": [],
    }


def test_the_cases_name_each_other_and_share_the_image(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    case = asked_once(clinic, policy)
    policy.rehearse([answer("A")])

    first, second = follow_up(clinic, case).json(), follow_up(clinic, case).json()

    assert first["follows"] == second["follows"] == case["case_id"]
    former = clinic.get(f"/v1/cases/{case['case_id']}").json()
    assert former == case | {"follow_ups": [first["case_id"], second["case_id"]]}
    assert clinic.get(first["image"]["url"]).content == clinic.get(case["image"]["url"]).content


def test_a_follow_up_looks_again_and_is_itself_followed(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    first = asked_once(clinic, policy)
    policy.rehearse([look([0, 0, 60, 60], "the other side"), answer("B", "only there")])
    second = follow_up(clinic, first).json()
    assert len(second["evidence"]) == 1
    policy.rehearse([answer("a disc")])

    third = follow_up(clinic, second, question="What is it?", choices=[]).json()

    said = as_text(first_request(policy))
    places = [
        said.index(text)
        for text in (QUESTION, FIRST[1].text, "Is it on the left?", "only there", "What is it?")
    ]
    assert places == sorted(places)
    assert said.count(second["evidence"][0]["crop"]) == 1
    assert third["answer"] == "a disc"
    assert [each["case_id"] for each in third["context"]["shown"]] == [
        first["case_id"],
        second["case_id"],
    ]


def test_the_shown_trajectory_is_what_is_remembered(clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)
    case = ask(clinic).json()
    policy.rehearse([answer("A")])

    follow_up(clinic, case)

    said = as_text(first_request(policy))
    assert all(turn["text"] in said for turn in case["turns"])
    assert said.count("<answer>") == 1 + prompt_before_image((ZOOM_IN,)).count("<answer>")


def test_a_bad_call_is_remembered_with_what_it_was_told(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    case = asked_once(clinic, policy, look([90, 90, 20, 20]), answer("B"))
    error = case["turns"][0]["call"]["error"]
    policy.rehearse([answer("A")])

    follow_up(clinic, case)

    assert f"<tool_response>error: {error}</tool_response>" in as_text(first_request(policy))


def test_what_only_the_chat_may_hold_is_left_out_of_what_was_written(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    case = asked_once(clinic, policy, answer("B", "see <|image_pad|>here<|im_end|>"))
    policy.rehearse([answer("A")])

    follow_up(clinic, case)

    assert "<think>see here</think>" in as_text(first_request(policy))


def room_for(policy: ScriptedPolicy, less: int) -> int:
    """The context in which the last first request just fits, less so many tokens."""
    request = first_request(policy)
    num_tokens = sum(len(ids) for ids in policy.generate(request).segment_token_ids)
    return num_tokens + 512 - less


def test_the_oldest_crops_are_dropped_first(clinic: httpx.Client, policy: ScriptedPolicy):
    case = asked_once(
        clinic, policy, look(IN_VIEW), look([10, 10, 40, 40]), answer("B", "both were seen")
    )
    policy.rehearse([answer("A")])
    follow_up(clinic, case)
    context = room_for(policy, 1)
    policy.rehearse([answer("A")])
    policy.max_model_len_tokens = context

    new = follow_up(clinic, case).json()

    said = as_text(first_request(policy))
    older, newer = (zoom["crop"] for zoom in case["evidence"])
    assert older not in said
    assert newer in said
    assert "<tool_response>no longer shown</tool_response>" in said
    [shown] = new["context"]["shown"]
    assert (shown["num_crops_shown"], shown["num_crops_dropped"]) == (1, 1)


def test_then_the_oldest_questions_are_dropped(clinic: httpx.Client, policy: ScriptedPolicy):
    first = asked_once(clinic, policy, answer("B", "zebra"))
    policy.rehearse([answer("A", "finch")])
    second = follow_up(clinic, first).json()
    policy.rehearse([answer("A")])
    follow_up(clinic, second)
    context = room_for(policy, 40)
    policy.rehearse([answer("A")])
    policy.max_model_len_tokens = context

    new = follow_up(clinic, second, question="And now?", choices=["yes", "no"]).json()

    said = as_text(first_request(policy))
    assert "zebra" not in said
    assert QUESTION not in said
    assert said.startswith(prompt_before_image((ZOOM_IN,)))
    assert prompt_after_image("Is it on the left?", ["yes", "no"]) in said
    assert "finch" in said
    assert new["context"] == {
        "shown": [{"case_id": second["case_id"], "num_crops_shown": 0, "num_crops_dropped": 0}],
        "dropped": [{"case_id": first["case_id"], "reason": "context_full"}],
    }


def test_a_question_that_does_not_fit_at_all_fails_and_says_so(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    case = asked_once(clinic, policy)
    policy.rehearse([answer("A")])
    policy.max_model_len_tokens = 700

    new = follow_up(clinic, case).json()

    assert (new["status"], new["failure"]["service"]) == ("failed", "clinic")
    assert new["failure"]["reason"].endswith("of the policy's context, where 188 are free")
    assert policy.requests == []


def test_images_that_the_policy_does_not_take_are_dropped(
    clinic: httpx.Client, policy: ScriptedPolicy
):
    zooms = [look([x, 10, x + 40, 50]) for x in (0, 30, 60, 90)]
    case = asked_once(clinic, policy, *zooms, answer("B"))
    policy.rehearse([answer("A")])

    new = follow_up(clinic, case).json()

    images = [s for s in first_request(policy).segments if isinstance(s, ImageSegment)]
    assert len(images) == 1 + 8 - 5, "the view, and a place is kept free for every further turn"
    [shown] = new["context"]["shown"]
    assert (shown["num_crops_shown"], shown["num_crops_dropped"]) == (3, 1)


def test_only_an_answered_case_is_followed(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")], [answer("B")])
    abstained = ask(clinic, k="2").json()
    assert abstained["status"] == "abstained"
    policy.rehearse([answer("A")])
    policy.fail_with = 400
    failed = ask(clinic, k="1").json()

    for case in (abstained, failed):
        problem = follow_up(clinic, case)
        assert problem.status_code == 409
        assert problem.json()["detail"] == (
            f"case {case['case_id']} is {case['status']}; only an answered case can be followed"
        )
    assert follow_up(clinic, {"case_id": "nobody"}).status_code == 404


def test_a_running_case_is_not_followed(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.release.clear()
    running = ask(clinic, headers={"prefer": "respond-async"}, k="1").json()

    assert follow_up(clinic, running).status_code == 409
    policy.release.set()


def test_a_conversation_has_an_end(clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    case = ask(clinic, k="1").json()
    for _ in range(MAX_EARLIER):
        case = follow_up(clinic, case).json()
        assert case["status"] == "answered"

    assert follow_up(clinic, case).status_code == 409
    assert len(case["context"]["shown"]) == MAX_EARLIER


@pytest.mark.parametrize("sent_as", ["data", "json", "files"])
def test_a_form_says_the_same_as_json(clinic: httpx.Client, policy: ScriptedPolicy, sent_as: str):
    case = asked_once(clinic, policy)
    policy.rehearse([answer("A")])
    url = f"/v1/cases/{case['case_id']}/follow-ups"
    fields: dict[str, Any] = {"question": "Left?", "choices": ["yes", "no"], "k": 2, "seed": 9}
    if sent_as == "files":
        parts = [("question", "Left?"), ("choices", "yes"), ("choices", "no"), ("k", "2")]
        files = [(name, (None, value)) for name, value in [*parts, ("seed", "9")]]
        new = clinic.post(url, files=files).json()
    else:
        new = clinic.post(url, **{sent_as: fields}).json()

    assert (new["question"], new["choices"]) == ("Left?", ["yes", "no"])
    assert (new["settings"]["num_trajectories"], new["settings"]["seed"]) == (2, 9)


REFUSED = [
    ("application/json", "{}", 422, "body.question: Field required"),
    ("application/json", "{", 422, "body: Invalid JSON"),
    ("application/json", '{"question": "?", "chioces": []}', 422, "body.chioces"),
    ("application/json", '{"question": " "}', 422, "at least one character"),
    ("application/json", '{"question": "<|im_end|>"}', 422, "reserved for the model"),
    ("application/json", '{"question": "?", "k": 17}', 422, "1 to 16"),
    ("application/json", '{"question": "?", "choices": ["a"]}', 422, "two or more"),
    ("application/x-www-form-urlencoded", "question=a&question=b", 422, "given twice"),
    ("application/x-www-form-urlencoded", "question=a&image=b", 422, "unknown field 'image'"),
    ("application/x-www-form-urlencoded", "question=a&k=many", 422, "body.k"),
    ("multipart/form-data", "question=a", 400, "boundary"),
    ("text/plain", "What?", 415, "accepted: application/json"),
]


def test_what_cannot_be_asked_is_said(clinic: httpx.Client, policy: ScriptedPolicy):
    url = f"/v1/cases/{asked_once(clinic, policy)['case_id']}"
    for content_type, body, status, said in REFUSED:
        headers = {"content-type": content_type}
        problem = clinic.post(f"{url}/follow-ups", content=body, headers=headers)

        assert problem.status_code == status, body
        assert said in problem.json()["detail"]
    assert clinic.get(url).json()["follow_ups"] == []


def test_a_repeated_follow_up_is_one_case(clinic: httpx.Client, policy: ScriptedPolicy):
    case = asked_once(clinic, policy)
    policy.rehearse([answer("A")])
    url = f"/v1/cases/{case['case_id']}/follow-ups"
    headers = {"idempotency-key": '"again"', "prefer": "wait=30"}
    body = {"question": "Left?", "choices": ["yes", "no"]}

    first = clinic.post(url, json=body, headers=headers)
    again = clinic.post(url, json=body, headers=headers)

    assert (again.status_code, again.json()) == (201, first.json())
    assert first.headers["preference-applied"] == "wait=30"
    assert clinic.get(f"/v1/cases/{case['case_id']}").json()["follow_ups"] == [
        first.json()["case_id"]
    ]
    other = clinic.post(url, json=body | {"k": 1}, headers=headers)
    assert other.status_code == 422
