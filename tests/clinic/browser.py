"""A real browser on the viewer, and what it drew, measured."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PATIENCE_MS = 60_000

_DRAWN_BOXES = """(layer) => {
  const image = document.querySelector('#stage img').getBoundingClientRect();
  return [...document.querySelectorAll(`#stage g.${layer} rect:not(.rim)`)].map((rect) => {
    const box = rect.getBBox(), toScreen = rect.getScreenCTM();
    const at = (x, y) => new DOMPoint(x, y).matrixTransform(toScreen);
    const a = at(box.x, box.y), b = at(box.x + box.width, box.y + box.height);
    return [(a.x - image.left) / image.width, (a.y - image.top) / image.height,
            (b.x - image.left) / image.width, (b.y - image.top) / image.height];
  });
}"""

_DECODED_AND_LAID_OUT = """async () => {
  await Promise.allSettled([...document.images].map((image) => image.decode()));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
"""Fetched is not drawn: on a busy machine the image still has no size when the network is idle."""


@dataclass
class Viewer:
    """A page, what it complained about, and what it fetched."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go to a page of the clinic."""
        self.page.goto(self.url + path)

    def open_case(self, case_id: str) -> None:
        """Go to a case and wait until it is drawn."""
        self.open(f"/cases/{case_id}")
        self.wait_for_case()

    def wait_for_case(self) -> None:
        """Until a case in a final state is drawn and its images are loaded."""
        self.page.wait_for_selector('main[aria-busy="false"] #case:not([hidden])')
        self.page.wait_for_load_state("networkidle")
        self.page.evaluate(_DECODED_AND_LAID_OUT)

    def fill(self, image: bytes, question: str, choices: list[str], k: int) -> None:
        """Fill in the form, by the names a screen reader would say."""
        scan = {"name": "scan.png", "mimeType": "image/png", "buffer": image}
        self.page.get_by_label("Image", exact=True).set_input_files(scan)
        self.page.get_by_label("Question").fill(question)
        for index, text in enumerate(choices):
            self.page.get_by_role("button", name="Add a choice").click()
            self.page.get_by_label(f"Choice {'ABCDEF'[index]}", exact=True).fill(text)
        self.page.get_by_label("Trajectories").fill(str(k))

    def ask(self) -> str:
        """Send the form; the id of the case it led to."""
        self.page.get_by_role("button", name="Ask").click()
        self.page.wait_for_url("**/cases/*")
        self.wait_for_case()
        return self.page.url.rsplit("/", 1)[1]

    def boxes(self, layer: str) -> list[list[float]]:
        """What a layer draws, as fractions of the image on the screen."""
        drawn: list[list[float]] = self.page.evaluate(_DRAWN_BOXES, layer)
        return drawn

    def stage_pixels(self) -> Image.Image:
        """The image with everything drawn on it, as the screen shows it."""
        return Image.open(io.BytesIO(self.page.locator("#stage").screenshot())).convert("RGB")

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return self.page.locator(selector).inner_text()


def chromium_path() -> str:
    """Where the browser is."""
    path = shutil.which("chromium")
    if path is None:
        raise RuntimeError("chromium is missing; `make browser` installs it")
    return path


@contextmanager
def opened_viewer(url: str) -> Iterator[Viewer]:
    """A headless browser on a clinic."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(),
            args=["--no-sandbox", "--disable-background-networking"],
            timeout=PATIENCE_MS,
        )
        page = browser.new_page(
            viewport={"width": 1360, "height": 900},
            reduced_motion="reduce",  # nothing moves while it is measured
        )
        page.set_default_timeout(PATIENCE_MS)
        viewer = Viewer(page, url)
        page.on("console", lambda message: viewer.complaints.append(message.text))
        page.on("pageerror", lambda error: viewer.complaints.append(str(error)))
        page.on("request", lambda request: viewer.fetched.append(request.url))
        yield viewer
        browser.close()
