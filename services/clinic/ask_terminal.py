"""What `medvr ask` writes: the course of a case to stderr, what it came to to stdout.

Plain lines where nobody watches; colours and a spinner on a terminal. Whatever a policy or a
person wrote is shown without control characters, so that it can do nothing to a terminal.
"""

import string
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.status import Status
from rich.text import Text

from shared.api.case_course import CaseEvidence
from shared.api.case_events import (
    CaseEvent,
    StartedEvent,
    TrajectoryEvent,
    TurnEvent,
    UncertaintyEvent,
    VerificationEvent,
    ZoomEvent,
)
from shared.api.case_result import CaseVerification, UnknownConfidence
from shared.api.clinic import AbstentionReason, Case, CaseStatus
from shared.api.zoom import WireBox
from shared.trajectory import StopReason

_MOST_CHARS = 160
_LABEL = 12

_ABSTENTIONS = {
    AbstentionReason.TIED: "two answers are equally frequent",
    AbstentionReason.UNANSWERED: "no trajectory gave an answer",
    AbstentionReason.UNCOMMITTED: "the most frequent answer commits to none of the choices",
    AbstentionReason.LOW_CONFIDENCE: "the answer is too unsure and withheld",
    AbstentionReason.UNSUPPORTED: "the answer survives the loss of its evidence and is withheld",
}
_UNKNOWN = {
    UnknownConfidence.NOT_CALIBRATED: "the clinic is not calibrated",
    UnknownConfidence.OTHER_WEIGHTS: "the clinic was calibrated with other weights",
    UnknownConfidence.OTHER_NUM_TRAJECTORIES: "the clinic was calibrated with another K",
    UnknownConfidence.OTHER_PROMPT: "the clinic was calibrated with another prompt",
}


def printable(text: str, most_chars: int | None = None) -> str:
    """A text on one line, without what a terminal would obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if most_chars is None or len(line) <= most_chars else f"{line[: most_chars - 1]}…"


def _trajectories(number: int) -> str:
    return "1 trajectory" if number == 1 else f"{number} trajectories"


def place(box: WireBox) -> str:
    """A box in words."""
    return f"x {box.x1}–{box.x2}, y {box.y1}–{box.y2}"


class Terminal:
    """Both streams of one run."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self._url = url.rstrip("/")
        self._as_json = as_json
        self._err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._numbers: dict[str, int] = {}
        self._unsure: dict[str, float] = {}
        """ΔH of the call in hand, by trajectory."""
        self._num_trajectories = self._num_ended = 0
        self._status: Status | None = None

    def say(self, line: str, style: str = "") -> None:
        """A line to stderr."""
        self._err.print(Text(line, style=style))

    def opened(self, case_id: str) -> None:
        """The case has a name."""
        self.say(f"case {case_id}", "dim")

    def left_running(self, case_id: str) -> None:
        """It is not watched any longer."""
        self.say(f"the case goes on; to come back: medvr ask --case {case_id}{self._url_flag()}")

    def _url_flag(self) -> str:
        return "" if self._url == "http://127.0.0.1:8080" else f" --url {self._url}"

    def failed(self, error: Exception, case_id: str | None) -> None:
        """The command cannot go on."""
        self.say(f"error: {printable(str(error))}", "red")
        if case_id is not None:
            self.left_running(case_id)

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """A spinner, where there is somebody to see it."""
        if not self._err.is_terminal:
            yield
            return
        with self._err.status("waiting for the first look …") as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    def tell(self, event: CaseEvent) -> None:
        """Show an event as it comes."""
        if isinstance(event, StartedEvent):
            again = " (begun again)" if self._num_trajectories else ""
            self._num_trajectories, self._num_ended = event.num_trajectories, 0
            self._numbers.clear()
            self.say(f"{_trajectories(event.num_trajectories)}{again}")
        elif isinstance(event, TurnEvent):
            self._turn(event)
        elif isinstance(event, UncertaintyEvent):
            self._unsure[event.trajectory_id] = event.entropy_increase_nats
        elif isinstance(event, ZoomEvent):
            increase = self._unsure.pop(event.trajectory_id, None)
            shown = "" if increase is None else f"   ΔH {increase:+.2f} nats"
            self._line(event.trajectory_id, f"looks at {place(event.box)}{shown}", "yellow")
        elif isinstance(event, TrajectoryEvent):
            self._ended(event)
        elif isinstance(event, VerificationEvent) and event.state == "asking":
            self.say(f"  asks again with a region blanked: {event.blanked.value}", "dim")

    def _line(self, trajectory_id: str, words: str, style: str = "") -> None:
        number = self._numbers.setdefault(trajectory_id, len(self._numbers) + 1)
        self.say(f"  #{number} {words}", style)

    def _turn(self, event: TurnEvent) -> None:
        thought = printable(event.thought, _MOST_CHARS)
        if thought:
            self._line(event.trajectory_id, f"thinks: {thought}", "dim")
        if event.call_error is not None:
            self._line(event.trajectory_id, f"sees nothing: {printable(event.call_error)}", "dim")

    def _ended(self, event: TrajectoryEvent) -> None:
        self._num_ended += 1
        if event.answer is None and event.stop_reason == StopReason.ANSWERED:
            self._line(event.trajectory_id, "has answered")  # what may be withheld is not told
        elif event.answer is None:
            self._line(event.trajectory_id, f"ends without an answer ({event.stop_reason})")
        else:
            self._line(event.trajectory_id, f"answers: {printable(event.answer, _MOST_CHARS)}")
        if self._status is not None:
            self._status.update(f"{self._num_ended} of {self._num_trajectories} have ended …")

    def show(self, case: Case) -> None:
        """What the case came to."""
        if self._as_json:
            self._out.print(case.model_dump_json(indent=2))
            return
        for label, words in _summary(case):
            self._fact(label, words)
        for zoom in case.evidence:
            self._fact(f"Evidence {zoom.index + 1}", _evidence(zoom))
        if case.consensus is not None and case.consensus.rectangles:
            self._fact("Consensus", f"{case.consensus.area_share:.1%} of the image")
        self._fact("Case", f"{self._url}/cases/{case.case_id}")
        self._out.print(Text(case.notice, style="bold"))

    def pictured(self, path: Path) -> None:
        """Where the picture of the evidence is."""
        self.say(f"picture of the evidence: {path}")

    def _fact(self, label: str, words: str) -> None:
        self._out.print(Text.assemble((f"{label:<{_LABEL}}", "bold"), words))


def _summary(case: Case) -> Generator[tuple[str, str], None, None]:
    """What a case came to, as labelled lines."""
    if case.status is CaseStatus.ABSTAINED:
        why = case.abstention
        yield "Abstained", "" if why is None else _ABSTENTIONS[why]
    elif case.status is CaseStatus.FAILED:
        failure = case.failure
        yield "Failed", "" if failure is None else f"{failure.service}: {printable(failure.reason)}"
    elif case.status is not CaseStatus.ANSWERED:
        yield "Status", case.status.value
    if case.answer is not None:
        option = "" if case.option_text is None else f": {printable(case.option_text)}"
        label = "Answer" if case.status is CaseStatus.ANSWERED else "Withheld"
        yield label, f"{printable(case.answer)}{option}"
    elif case.is_withheld:
        yield "Withheld", "--show-withheld shows it"
    yield from _confidence(case)
    if case.verification is not None:
        yield "Evidence", _support(case.verification)
    if case.agreement is not None:
        num_trajectories = case.settings.num_trajectories
        num_agreeing = round(case.agreement * num_trajectories)
        yield "Agreement", f"{num_agreeing} of {_trajectories(num_trajectories)}"
    if case.status is CaseStatus.ABSTAINED and case.votes:
        yield "Votes", ", ".join(_vote(case, *vote) for vote in sorted(case.votes.items()))


def _probability(share: float) -> str:
    """What was fitted on some hundred problems is never certain."""
    return "over 99%" if share > 0.99 else "under 1%" if share < 0.01 else f"{share:.0%}"


def _confidence(case: Case) -> Generator[tuple[str, str], None, None]:
    named = case.calibration
    if case.confidence is not None and named is not None:
        source = f"calibrated on {printable(named.problem_set)}, {named.num_problems} problems"
        yield "Confidence", f"{_probability(case.confidence)} ({source})"
    elif case.confidence_unknown is not None and case.confidence_unknown in _UNKNOWN:
        yield "Confidence", f"not known: {_UNKNOWN[case.confidence_unknown]}"


def _support(verification: CaseVerification) -> str:
    """Whether the evidence shown is why, in words."""
    if verification.supported is None:
        reason = verification.evidence_unasked
        return f"not verified ({reason.value.replace('_', ' ') if reason else 'unknown'})"
    if not verification.supported:
        return "the answer is NOT SUPPORTED by the evidence shown: it survives its loss"
    elsewhere = verification.elsewhere_blanked
    if elsewhere is not None and elsewhere.changed:
        return "the answer changes without it, but also without a region elsewhere: fragile"
    return "the answer changes without it: supported"


def _vote(case: Case, answer: str, number: int) -> str:
    index = string.ascii_uppercase.find(answer) if len(answer) == 1 else -1
    text = f" {printable(case.choices[index])}" if 0 <= index < len(case.choices) else ""
    return f"{printable(answer, _MOST_CHARS)}{text} ×{number}"


def _evidence(zoom: CaseEvidence) -> str:
    return (
        f"{place(zoom.box)}   ΔH {zoom.entropy_increase_nats:+.2f} nats "
        f"({zoom.baseline_entropy_nats:.2f} before, {zoom.tool_entropy_nats:.2f} in the box)"
    )
