"""The pages in a real browser, against the real clinic, zoom and cca."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Route

from tests.clinic.browser import Viewer, opened_viewer
from tests.clinic.pictures import picture, png
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look
from tests.clinic.test_cases import CHOICES, IN_VIEW, QUESTION, ask, two_against_one
from tests.clinic.test_rendering import ct

ZOOM_COLOUR = (0xFF, 0xC5, 0x3D)
SCRIPT = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def _browser() -> Iterator[Viewer]:
    """Closed with this module: while it is open its event loop runs in the tests' thread."""
    with opened_viewer("") as viewer:
        yield viewer


@pytest.fixture
def viewer(_browser: Viewer, clinic: httpx.Client) -> Viewer:
    _browser.page.set_viewport_size({"width": 1360, "height": 900})
    _browser.page.goto("about:blank")
    _browser.url = str(clinic.base_url)
    _browser.complaints.clear()
    _browser.fetched.clear()
    return _browser


def fractions(case: dict[str, object], boxes: list[dict[str, int]]) -> list[list[float]]:
    image = case["image"]
    assert isinstance(image, dict)
    width, height = image["width_px"], image["height_px"]
    return [[b["x1"] / width, b["y1"] / height, b["x2"] / width, b["y2"] / height] for b in boxes]


def test_from_upload_to_the_boxes_where_the_case_says(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    viewer.open("/")
    viewer.fill(png(picture()), QUESTION, CHOICES, k=3)

    case = clinic.get(f"/v1/cases/{viewer.ask()}").json()

    assert viewer.text("#question") == QUESTION
    assert "B. cross" in viewer.text("#answer")
    assert "2 of 3 independent trajectories agree (67 %)" in viewer.text("#answer")
    [zoom] = case["evidence"]
    [drawn] = viewer.boxes("evidence")
    assert drawn == pytest.approx(zoom["box_normalised"], abs=1e-3)
    [agreed] = viewer.boxes("consensus")
    [expected] = fractions(case, case["consensus"]["rectangles"])
    assert agreed == pytest.approx(expected, abs=1e-3)
    assert viewer.complaints == []


def test_the_frame_is_on_the_screen_where_the_box_is(viewer: Viewer, policy: ScriptedPolicy):
    policy.rehearse([look(IN_VIEW), answer("A")])
    viewer.open("/")
    viewer.fill(png(picture()), QUESTION, CHOICES, k=1)
    viewer.ask()
    viewer.page.get_by_label("Consensus region").uncheck()

    pixels = viewer.stage_pixels()
    yellow = [
        (x / pixels.width, y / pixels.height)
        for y in range(pixels.height)
        for x in range(pixels.width)
        if is_near(pixels.getpixel((x, y)), ZOOM_COLOUR)
    ]

    marker = 14 / pixels.width  # the number stands on the corner, half outside the box
    low_x, high_x = min(x for x, _ in yellow), max(x for x, _ in yellow)
    low_y, high_y = min(y for _, y in yellow), max(y for _, y in yellow)
    assert low_x == pytest.approx(0.5, abs=marker)
    assert low_y == pytest.approx(0.25, abs=marker)
    assert (high_x, high_y) == pytest.approx((220 / 336, 140 / 336), abs=0.006)


def is_near(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= 6 for a, b in zip(pixel, colour, strict=True))


def test_each_step_shows_thought_crop_and_entropies(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    case = ask(clinic).json()

    viewer.open_case(case["case_id"])
    first, second = viewer.page.locator("#steps > li").all()

    said = first.inner_text()
    assert "bright on the right" in said
    assert "x 168–220, y 84–140 px" in said
    assert "0.25 nats" in said
    assert "1.50 nats" in said
    assert "ΔH +1.25 nats" in said
    assert "Answered B" in second.inner_text()
    thumb = first.get_by_role("img", name="Crop of zoom 1")
    zoom = case["evidence"][0]
    natural = thumb.evaluate("(node) => [node.naturalWidth, node.naturalHeight]")
    assert natural == [zoom["crop_width_px"], zoom["crop_height_px"]]


def test_how_the_answer_came_about_is_said(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    viewer.open_case(ask(clinic, seed="5").json()["case_id"])

    details = viewer.text("#details")

    for words in ("B. cross\t2", "C. dot\t1", "Version\t7 (run rehearsal)", "Seed\t5"):
        assert words in details
    assert "Agreeing trajectories\t2" in details
    assert "[168, 84, 220, 140]" in details
    assert "Trajectories\t" in details


def test_layers_are_switched_and_the_heatmap_lies_where_they_looked(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    viewer.open_case(ask(clinic).json()["case_id"])
    heat = viewer.page.locator("canvas.heat")
    evidence = viewer.page.locator("#stage g.evidence")
    assert not heat.is_visible()

    viewer.page.get_by_label("Heatmap", exact=True).check()
    viewer.page.get_by_label("Zooms of the trajectory shown").uncheck()
    viewer.page.wait_for_selector("canvas.heat[data-drawn]")

    assert heat.is_visible()
    assert not evidence.is_visible()
    alpha = """(node, [x, y]) => node.getContext('2d')
        .getImageData(x * node.width, y * node.height, 1, 1).data[3]"""
    assert heat.evaluate(alpha, [0.58, 0.33]) > 100
    assert heat.evaluate(alpha, [0.1, 0.1]) == 0


@pytest.mark.parametrize("size", [(4200, 3100), (120, 1500), (48, 40)])
@pytest.mark.parametrize("screen", [(1360, 900), (390, 844)])
def test_images_of_any_size_fit_the_screen(
    viewer: Viewer,
    clinic: httpx.Client,
    policy: ScriptedPolicy,
    size: tuple[int, int],
    screen: tuple[int, int],
):
    policy.rehearse([look([8, 8, 20, 20]), answer("A")])
    image = Image.linear_gradient("L").resize(size)
    case = ask(clinic, image=png(image), k="1").json()
    viewer.page.set_viewport_size({"width": screen[0], "height": screen[1]})

    viewer.open_case(case["case_id"])

    stage = viewer.page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["x"] >= 0
    assert stage["x"] + stage["width"] <= screen[0]
    assert stage["height"] <= screen[1]
    assert stage["width"] / stage["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    assert viewer.page.evaluate("document.documentElement.scrollWidth") <= screen[0]
    [drawn] = viewer.boxes("evidence")
    assert drawn == pytest.approx(case["evidence"][0]["box_normalised"], abs=1e-3)


def test_the_notice_stays_in_sight(viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy):
    two_against_one(policy)
    viewer.open_case(ask(clinic).json()["case_id"])

    viewer.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")

    notice = viewer.page.get_by_role("note")
    assert notice.inner_text() == "Research use only. Not a medical device."
    box = notice.bounding_box()
    assert box is not None
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 900


def test_a_tie_is_said_and_all_boxes_are_shown(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW), answer("A")], [look([10, 10, 40, 40]), answer("B")])
    case = ask(clinic, k="2").json()

    viewer.open_case(case["case_id"])

    assert "No answer is given." in viewer.text("#answer")
    assert "A. ring and B. cross have 1 vote each" in viewer.text("#answer")
    boxes = [attempt["boxes"][0] for attempt in case["attempts"]]
    for drawn, expected in zip(viewer.boxes("attempts"), fractions(case, boxes), strict=True):
        assert drawn == pytest.approx(expected, abs=1e-3)
    assert viewer.page.locator("#steps > li").count() == 2


def test_a_failed_case_says_what_failed(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.fail_with = 400
    case_id = ask(clinic, k="1").json()["case_id"]

    viewer.open_case(case_id)

    alert = viewer.page.get_by_role("alert")
    assert alert.inner_text() == "policy: 400 Policy refuses: as the script says"
    assert viewer.page.locator("#stage img").is_visible()


def test_a_running_case_is_followed_to_its_end(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("C")])
    policy.release.clear()
    impatient = httpx.Client(base_url=clinic.base_url, timeout=2.0, trust_env=False)
    with impatient, pytest.raises(httpx.ReadTimeout):
        ask(impatient, k="1")
    [line] = clinic.get("/v1/cases").json()["cases"]
    viewer.open(f"/cases/{line['case_id']}")
    viewer.page.wait_for_selector(".badge.running")

    policy.release.set()
    viewer.wait_for_case()

    assert "C. dot" in viewer.text("#answer")
    streams = [url for url in viewer.fetched if url.endswith("/events")]
    reads = [url for url in viewer.fetched if url.endswith(line["url"])]
    assert (len(streams), len(reads)) == (1, 2)  # nothing is asked again and again


def test_a_running_case_says_how_far_it_is(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW), answer("A")])
    policy.hold_after = 1
    case_id = ask(clinic, headers={"prefer": "wait=0"}, k="1").json()["case_id"]

    viewer.open(f"/cases/{case_id}")
    viewer.page.get_by_text("1 zoom so far; 0 of 1 trajectories ended.").wait_for()
    policy.release.set()
    viewer.wait_for_case()

    assert viewer.page.locator("#state").is_hidden()


def test_the_button_cancels_a_running_case(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    policy.release.clear()
    case_id = ask(clinic, headers={"prefer": "wait=0"}, k="1").json()["case_id"]
    viewer.open(f"/cases/{case_id}")

    viewer.page.get_by_role("button", name="Cancel this case").click()
    viewer.wait_for_case()

    assert clinic.get(f"/v1/cases/{case_id}").json()["status"] == "cancelled"
    assert viewer.text(".badge.cancelled") == "Cancelled"
    assert viewer.page.get_by_role("button", name="Cancel this case").count() == 0
    policy.release.set()


def test_a_question_sent_again_is_the_same_question(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    """The answer to the first sending is lost on its way."""
    policy.rehearse([answer("A")])
    viewer.open("/")
    viewer.fill(png(picture()), QUESTION, CHOICES, k=1)

    def lose_the_answer(route: Route) -> None:
        route.fetch()
        route.abort()

    viewer.page.route("**/v1/cases", lose_the_answer, times=1)
    viewer.page.get_by_role("button", name="Ask").click()
    viewer.page.wait_for_selector("#error:not([hidden])")
    assert viewer.text("#error").startswith("The clinic does not answer")
    shown = viewer.ask()

    assert [line["case_id"] for line in clinic.get("/v1/cases").json()["cases"]] == [shown]


def test_a_cancelled_case_says_so(viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    policy.release.clear()
    case_id = ask(clinic, headers={"prefer": "wait=0"}, k="1").json()["case_id"]
    clinic.post(f"/v1/cases/{case_id}/cancel")
    policy.release.set()

    viewer.open_case(case_id)

    assert viewer.text(".badge.cancelled") == "Cancelled"
    assert "taken back before it was answered" in viewer.text("#answer")


def test_mistakes_in_the_form_are_said_before_anything_is_sent(
    viewer: Viewer, policy: ScriptedPolicy
):
    viewer.open("/")
    alert = viewer.page.get_by_role("alert")
    viewer.page.get_by_role("button", name="Ask").click()
    assert alert.inner_text() == "Choose an image first."

    viewer.fill(png(picture()), "", ["only one"], k=3)
    viewer.page.get_by_role("button", name="Ask").click()
    assert alert.inner_text() == "Write a question."

    viewer.page.get_by_label("Question").fill("What?")
    viewer.page.get_by_role("button", name="Ask").click()
    assert alert.inner_text() == "Give two choices or more, or none."
    assert viewer.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Choice A"
    assert [url for url in viewer.fetched if url.endswith("/v1/cases")] == []
    assert policy.requests == []


def test_what_zoom_says_of_a_bad_file_is_shown(viewer: Viewer):
    viewer.open("/")
    viewer.fill(b"this is no image", "What?", [], k=1)

    viewer.page.get_by_role("button", name="Ask").click()
    viewer.page.wait_for_selector("#error:not([hidden])")

    assert viewer.text("#error").startswith("The image cannot be used: ")
    assert viewer.page.get_by_role("button", name="Ask").is_enabled()


def test_an_unknown_case_is_said(viewer: Viewer):
    viewer.open("/cases/nothing-here")
    viewer.page.wait_for_selector("#state.alert")
    assert viewer.text("#state") == "No such case: no case nothing-here"


def test_text_of_a_case_never_becomes_markup(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW, SCRIPT), answer(SCRIPT)])
    case_id = ask(clinic, k="1", choices=None, question=SCRIPT).json()["case_id"]

    viewer.open_case(case_id)

    assert viewer.text("#question") == SCRIPT
    assert SCRIPT in viewer.text("#answer")
    assert viewer.page.locator('img[src="x"]').count() == 0
    viewer.open("/")
    viewer.page.wait_for_selector("#recent li")
    assert viewer.page.locator("#recent .question").first.inner_text() == SCRIPT
    assert viewer.complaints == []


def test_nothing_is_fetched_from_elsewhere(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    viewer.open_case(ask(clinic).json()["case_id"])
    viewer.open("/")
    viewer.page.wait_for_load_state("networkidle")

    assert viewer.fetched != []
    assert [url for url in viewer.fetched if not url.startswith(viewer.url)] == []
    assert viewer.complaints == []


def test_the_keyboard_reaches_a_box_and_leads_to_its_step(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    viewer.open_case(ask(clinic).json()["case_id"])

    for _ in range(20):
        viewer.page.keyboard.press("Tab")
        if viewer.page.evaluate("document.activeElement.classList.contains('marker')"):
            break
    label = viewer.page.evaluate("document.activeElement.getAttribute('aria-label')")
    viewer.page.keyboard.press("Enter")

    assert label == "Zoom 1, x 168 to 220, y 84 to 140: go to its step"
    assert viewer.page.evaluate("document.activeElement.id") == "zoom-1"
    assert viewer.page.locator("rect.zoom.strong").count() == 1


def test_every_image_and_field_has_words(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    two_against_one(policy)
    nameless: Callable[[], int] = lambda: viewer.page.evaluate(  # noqa: E731
        """() => [...document.querySelectorAll('img, [role=img], input, textarea, button, a')]
          .filter((n) => !(n.alt || n.getAttribute('aria-label') || n.textContent.trim()
                           || (n.labels && n.labels.length))).length"""
    )
    viewer.open("/")
    viewer.page.get_by_role("button", name="Add a choice").click()
    assert nameless() == 0
    viewer.open_case(ask(clinic).json()["case_id"])
    assert nameless() == 0


def test_frame_and_window_are_asked_for_and_said(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([answer("A")])
    viewer.open("/")
    viewer.fill(ct(3), QUESTION, CHOICES, k=1)
    viewer.page.get_by_text("Frame, slice and window").click()
    viewer.page.get_by_label("Frame", exact=True).fill("2")
    viewer.page.get_by_label("Window", exact=True).select_option("brain")

    case = clinic.get(f"/v1/cases/{viewer.ask()}").json()

    assert case["image"]["rendering"]["frame"] == 2
    assert "Frame\t2 of 3" in viewer.text("#details")
    assert "Windows\t40 / 80 (brain)" in viewer.text("#details")
    assert "Modality\tCT" in viewer.text("#details")
    assert viewer.complaints == []


def test_an_own_window_needs_both_its_numbers(viewer: Viewer, policy: ScriptedPolicy):
    policy.rehearse([answer("A")])
    viewer.open("/")
    viewer.fill(ct(), QUESTION, CHOICES, k=1)
    viewer.page.get_by_text("Frame, slice and window").click()
    viewer.page.get_by_label("Window", exact=True).select_option("own")
    viewer.page.get_by_label("Window centre").fill("40")
    viewer.page.get_by_role("button", name="Ask").click()
    assert viewer.text("#error") == "Give the window's centre and its width."

    viewer.page.get_by_label("Window width").fill("350")
    viewer.ask()

    assert "Windows\t40 / 350" in viewer.text("#details")


def test_the_check_of_the_evidence_is_shown_with_its_pictures(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse(*[[look(IN_VIEW), answer("B")]] * 2, *[[answer("A")]] * 2, *[[answer("B")]] * 2)
    viewer.open("/")
    viewer.fill(png(picture()), QUESTION, CHOICES, k=2)
    viewer.page.get_by_label("Check the evidence").check()

    case = clinic.get(f"/v1/cases/{viewer.ask()}").json()

    assert "Supported: with the evidence blanked out, the answer changes." in viewer.text("#answer")
    assert "The answer changed: A. ring (100 % agree)." in viewer.text("#details")
    assert "The answer stayed: B. cross (100 % agree)." in viewer.text("#details")
    shown = viewer.page.locator(".blanked img").evaluate_all(
        "(nodes) => nodes.map((n) => [new URL(n.src).pathname, n.naturalWidth])"
    )
    links = case["links"]
    assert shown == [[links["evidence_blanked"], 336], [links["elsewhere_blanked"], 336]]


def test_a_withheld_answer_is_shown_on_request(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse(*[[look(IN_VIEW), answer("B")]] * 2, *[[answer("B")]] * 4)
    case_id = ask(clinic, k="2", verify="true").json()["case_id"]
    viewer.open_case(case_id)
    assert "it is not supported by the evidence shown" in viewer.text("#answer")
    assert "Answered" not in viewer.text("main")
    assert "The answer stayed." in viewer.text("#details")

    viewer.page.get_by_role("button", name="Show it all the same").click()
    viewer.page.get_by_text("Shown on request.").wait_for()

    assert "B. cross" in viewer.text("#answer")
    assert "Answered B" in viewer.text("#steps")


def test_a_follow_up_is_asked_and_both_cases_lead_to_each_other(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW), answer("B")], [answer("A")])
    first = ask(clinic, k="1").json()["case_id"]
    viewer.open_case(first)

    viewer.page.get_by_label("Further question").fill("On which side?")
    viewer.page.get_by_label("Its choices").fill("left\nright")
    viewer.page.get_by_role("button", name="Ask further").click()
    viewer.page.wait_for_url(lambda url: first not in url)
    viewer.wait_for_case()

    assert viewer.text("#question") == "On which side?"
    assert "A. left" in viewer.text("#answer")
    viewer.page.get_by_role("link", name="The question before").click()
    viewer.page.wait_for_url(f"**/cases/{first}")
    viewer.wait_for_case()
    assert viewer.page.get_by_role("link", name="Follow-up 1").count() == 1


def test_a_correction_is_drawn_sent_and_listed(
    viewer: Viewer, clinic: httpx.Client, policy: ScriptedPolicy
):
    policy.rehearse([look(IN_VIEW), answer("B")])
    case_id = ask(clinic, k="1").json()["case_id"]
    viewer.open_case(case_id)
    page = viewer.page
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Choose a verdict first.").wait_for()

    page.get_by_label("I correct it").check()
    page.get_by_label("Right answer").select_option("C")
    page.get_by_role("button", name="Draw it on the image").click()
    page.wait_for_selector(".stage.marking")
    stage = page.locator("#stage").bounding_box()
    assert stage is not None
    page.mouse.move(stage["x"] + stage["width"] * 0.75, stage["y"] + stage["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.25, stage["y"] + stage["height"] * 0.25)
    page.mouse.up()
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector(".versions li")

    [given] = clinic.get(f"/v1/cases/{case_id}/feedback").json()["versions"]
    assert (given["verdict"], given["corrected_answer"]) == ("corrected", "C")
    corners = [given["corrected_box"][corner] for corner in ("x1", "y1", "x2", "y2")]
    assert corners == pytest.approx([84, 84, 252, 168], abs=2)
    assert "radiologist: corrected to C. dot" in viewer.text(".versions")

    page.get_by_label("I disagree").check()
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector(".versions li:nth-child(2)")
    assert len(clinic.get(f"/v1/cases/{case_id}/feedback").json()["versions"]) == 2
    assert viewer.complaints == []
