"""A clinician's client that does not give up: asks, and when its connection breaks, looks.

A case that the clinic had accepted is found in its list by its question, which nobody else asks;
one that it had not is asked again. Either way exactly one case must come of it.
"""

import threading
import time
from typing import Any

import httpx

_POLL_S = 0.3
_FINAL = ("answered", "abstained", "failed")


class Inquiry:
    """One question about one image, from the first POST to the final case."""

    def __init__(self, clinic_url: str, image: bytes, number: int) -> None:
        self.question = f"Which pattern fills the lesion? ({number})"
        self.num_posts = 0
        self.case: dict[str, Any] | None = None
        """The final case."""
        self._image = image
        self._http = httpx.Client(base_url=clinic_url, timeout=600, trust_env=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._insist, daemon=True)

    def start(self) -> None:
        """Ask, in a thread."""
        self._thread.start()

    def give_up(self) -> None:
        """End the thread; the clinic must be up or gone."""
        self._stop.set()
        self._http.close()

    def matching_cases(self) -> list[str]:
        """Ids of all cases in the clinic with this question."""
        page = self._http.get("/v1/cases", params={"limit": 100}).raise_for_status().json()
        cases = [self._http.get(line["url"]).raise_for_status().json() for line in page["cases"]]
        return [case["case_id"] for case in cases if case["question"] == self.question]

    def _insist(self) -> None:
        while self.case is None and not self._stop.is_set():
            try:
                self.case = self._followed(self.matching_cases()) or self._asked()
            except httpx.HTTPError:
                time.sleep(_POLL_S)

    def _asked(self) -> dict[str, Any]:
        self.num_posts += 1
        form = {"question": self.question, "choices": ["plain", "rows"], "k": "2"}
        answer = self._http.post("/v1/cases", data=form, files={"image": self._image})
        return answer.raise_for_status().json()

    def _followed(self, case_ids: list[str]) -> dict[str, Any] | None:
        if not case_ids:
            return None
        while True:
            case = self._http.get(f"/v1/cases/{case_ids[0]}").raise_for_status().json()
            if case["status"] in _FINAL:
                return case
            time.sleep(_POLL_S)
