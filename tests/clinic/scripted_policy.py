"""A policy server that speaks the wire contract and says what a script tells it to.

It is a real HTTP server over the real blob store; only the mind is missing. Every character is a
token. A trajectory is recognised by its first token, which has an empty text and stays in every
later request, so the K trajectories of a case can be told apart however they interleave.
"""

import io
import re
import threading
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from PIL import Image

from shared.api.policy import (
    GenerateRequest,
    GenerateResponse,
    ImageSegment,
    PolicyDescription,
    TextSegment,
    TokenizeRequest,
    TokensSegment,
    WirePixelLimits,
    WireVersionSpan,
)
from shared.blobs import BlobStore
from shared.service.problems import problem_response

VIEW = WirePixelLimits(min_pixels=168 * 168, max_pixels=168 * 168)
CROP = WirePixelLimits(min_pixels=84 * 84, max_pixels=168 * 168)
_MARK = 2_000_000
_VISION_START, _VISION_END, _IMAGE_PAD = 3_000_000, 3_000_001, 3_000_002


@dataclass(frozen=True)
class Say:
    """One turn: its text, the entropy of its words, and that of a box's characters."""

    text: str
    words_nats: float = 0.25
    box_nats: float = 1.5
    answer_logprob: float = -0.1
    """Of every character between the tags of an answer; all others have -0.5."""


def look(bbox_2d: list[int], thought: str = "look closer", **nats: float) -> Say:
    """A zoom."""
    call = f'{{"name": "zoom_in", "arguments": {{"bbox_2d": {bbox_2d}}}}}'
    return Say(f"<think>{thought}</think><tool_call>{call}</tool_call>", **nats)


def window(center: float, width: float, thought: str = "another window") -> Say:
    """A grey-level window, of a policy with that tool (`tools`)."""
    call = f'{{"name": "set_window", "arguments": {{"center": {center}, "width": {width}}}}}'
    return Say(f"<think>{thought}</think><tool_call>{call}</tool_call>")


def answer(text: str, thought: str = "it is clear now", logprob: float = -0.1) -> Say:
    """The end."""
    return Say(f"<think>{thought}</think><answer>{text}</answer>", answer_logprob=logprob)


@dataclass
class ScriptedPolicy:
    """The script and what was asked; give `plans` before asking."""

    blobs: BlobStore
    plans: list[list[Say]] = field(default_factory=list)
    version: int = 7
    weights_sha256: str | None = "a" * 64
    sampling_version: int = 7
    """Of the tokens; another than `version` after a swap."""
    fail_with: int | None = None
    url: str = ""
    max_model_len_tokens: int = 65_536
    tools: list[str] = field(default_factory=lambda: ["zoom_in"])
    requests: list[GenerateRequest] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    """Cleared: requests wait."""
    entered: threading.Event = field(default_factory=threading.Event)
    """Set by a request that arrived."""
    num_entered: int = 0
    hold_after: int | None = None
    """The requests after so many wait, as if `release` had been cleared then."""

    def rehearse(self, *plans: list[Say]) -> None:
        """The next cases' trajectories follow these plans, in turn."""
        self.plans, self.requests, self.fail_with = list(plans), [], None
        self.weights_sha256, self.sampling_version = "a" * 64, self.version
        self._begun = self.num_entered = 0
        self.hold_after = None
        self.max_model_len_tokens, self.tools = 65_536, ["zoom_in"]
        self.release.set()
        self.entered.clear()

    def describe(self) -> PolicyDescription:
        """What a caller must know."""
        return PolicyDescription(
            model="scripted",
            run="rehearsal",
            version=self.version,
            weights_sha256=self.weights_sha256,
            channel=None,
            entropy_mode="exact",
            tools=self.tools,
            view=VIEW,
            crop=CROP,
            min_side_px=28,
            max_turns=5,
            max_model_len_tokens=self.max_model_len_tokens,
            max_images=8,
            max_entropy_tokens=512,
            vllm_version="none",
        )

    def generate(self, request: GenerateRequest) -> GenerateResponse:
        """The next turn of the trajectory this request belongs to."""
        self.requests.append(request)
        written = [
            token
            for segment in request.segments
            if isinstance(segment, TokensSegment)
            for token in segment.token_ids
        ]
        marks = [token - _MARK for token in written if _MARK <= token < _VISION_START]
        if marks:
            number, turn = marks[0], len(marks)
        else:
            number, turn = self._begun, 0
            self._begun += 1
        say = self.plans[number % len(self.plans)][turn]
        token_ids = [_MARK + number, *map(ord, say.text)]
        return GenerateResponse(
            segment_token_ids=[self._ids(segment) for segment in request.segments],
            token_ids=token_ids,
            token_texts=["", *say.text],
            sampled_logprobs=[-0.5, *_logprobs(say)],
            entropies_nats=[say.words_nats, *_entropies(say)],
            finish="stop",
            stop=re.findall("</tool_call>|</answer>", say.text)[-1],
            version_spans=[
                WireVersionSpan(version=self.sampling_version, num_tokens=len(token_ids))
            ],
            num_cached_tokens=0,
        )

    def _ids(self, segment: TextSegment | ImageSegment | TokensSegment) -> list[int]:
        if isinstance(segment, TextSegment):
            return [ord(character) for character in segment.text]
        if isinstance(segment, TokensSegment):
            return segment.token_ids
        width, height = Image.open(io.BytesIO(self.blobs.get(segment.image))).size
        pads = [_IMAGE_PAD] * ((width // 28) * (height // 28))
        return [_VISION_START, *pads, _VISION_END]


def _logprobs(say: Say) -> list[float]:
    """Per character."""
    answer = re.search(r"<answer>(.*)</answer>", say.text)
    inside = range(*answer.span(1)) if answer else range(0)
    return [say.answer_logprob if i in inside else -0.5 for i in range(len(say.text))]


def _entropies(say: Say) -> list[float]:
    """Per character: the box's from its first coordinate through its closing bracket."""
    box = re.search(r"\[([^\]]*\])", say.text)
    inside = range(*box.span(1)) if box else range(0)
    return [say.box_nats if i in inside else say.words_nats for i in range(len(say.text))]


def scripted_app(policy: ScriptedPolicy) -> FastAPI:
    """The two routes of the policy server that a clinic uses."""
    app = FastAPI()

    @app.get("/medvr/v1/policy")
    def describe() -> PolicyDescription:
        return policy.describe()

    @app.post("/tokenize")
    def tokenize(request: TokenizeRequest) -> dict[str, object]:
        return {"count": len(request.prompt), "max_model_len": policy.max_model_len_tokens}

    @app.post("/medvr/v1/generate")
    def generate(request: GenerateRequest, _: Request) -> Response:
        policy.num_entered += 1
        policy.entered.set()
        if policy.hold_after is not None and policy.num_entered == policy.hold_after + 1:
            policy.release.clear()
        if not policy.release.wait(timeout=60):
            return problem_response(504, "Held too long", "the test never released it")
        if policy.fail_with is not None:
            return problem_response(policy.fail_with, "Policy refuses", "as the script says")
        return Response(policy.generate(request).model_dump_json(), media_type="application/json")

    return app
