"""Wire models of the policy server: tokens in, tokens out.

A prompt is a list of segments. Text is tokenised by the server, which returns the ids of every
segment; the caller keeps them and sends ids from then on, so nothing is ever tokenised twice.
An image segment stands for vision start, one placeholder per image token and vision end; when a
later turn sends it again it is again an image segment, never ids.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from shared.api.base import SHA256_PATTERN, WireModel

MAX_ENTROPY_TOKENS = 512


class TextSegment(WireModel):
    """Text to be tokenised by the server (special tokens are recognised)."""

    type: Literal["text"] = "text"
    text: str = Field(min_length=1, max_length=200_000)


class ImageSegment(WireModel):
    """An image by the hash of its PNG exactly as it is to be shown."""

    type: Literal["image"] = "image"
    image: str = Field(pattern=SHA256_PATTERN)


class TokensSegment(WireModel):
    """Token ids, without vision placeholders."""

    type: Literal["tokens"] = "tokens"
    token_ids: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


Segment = Annotated[TextSegment | ImageSegment | TokensSegment, Field(discriminator="type")]


class GenerateRequest(WireModel):
    """`POST /medvr/v1/generate`: continue the segments by one turn."""

    segments: list[Segment] = Field(min_length=1, max_length=256)
    max_tokens: int = Field(ge=1, le=16_384)
    temperature: float = Field(default=1.0, ge=0.0, le=1.0, description="0 (greedy) or 1")
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: list[str] = Field(default=[], max_length=8)
    """Stop strings; kept in the tokens. End-of-sequence tokens always stop and are kept too."""
    stream: bool = False
    """True: newline-delimited JSON, `GenerateDelta` lines and a last `GenerateResponse` line."""


class WireVersionSpan(WireModel):
    """`num_tokens` consecutive tokens came from policy version `version`."""

    version: int
    num_tokens: int


class GenerateDelta(WireModel):
    """Tokens sampled since the last line of a stream."""

    kind: Literal["delta"] = "delta"
    token_ids: list[int]
    token_texts: list[str]
    sampled_logprobs: list[float]
    entropies_nats: list[float]


class GenerateResponse(WireModel):
    """The whole turn; lists have one entry per sampled token."""

    kind: Literal["done"] = "done"
    segment_token_ids: list[list[int]]
    """Ids of each request segment; an image's are vision start, placeholders, vision end."""
    token_ids: list[int]
    token_texts: list[str]
    sampled_logprobs: list[float]
    entropies_nats: list[float]
    finish: Literal["stop", "end_of_sequence", "length"]
    stop: str | None
    """The stop string that ended the turn."""
    version_spans: list[WireVersionSpan]
    num_cached_tokens: int
    """Prompt tokens served from the prefix cache."""


class EntropyRequest(WireModel):
    """`POST /medvr/v1/entropy`: score a given continuation under the policy."""

    segments: list[Segment] = Field(min_length=1, max_length=256)
    continuation: str | list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Text, or token ids; at most 512 tokens."""


class EntropyResponse(WireModel):
    """Per-token entropies of the continuation, and EVR's figures if it holds a tool call."""

    token_ids: list[int]
    token_texts: list[str]
    logprobs: list[float]
    entropies_nats: list[float]
    baseline_entropy_nats: float
    """H_base of the continuation read as a trajectory's first turn."""
    tool_entropy_nats: float | None
    """H_tool; None if the continuation holds no parseable call."""
    entropy_increase_nats: float | None
    """ΔH_tool."""
    version: int


class WirePixelLimits(WireModel):
    """Least and most pixels of a shown image."""

    min_pixels: int
    max_pixels: int


class TokenizeRequest(WireModel):
    """`POST /tokenize`, a route of vLLM's own: how many tokens a text is."""

    prompt: str = Field(min_length=1, max_length=200_000)
    add_special_tokens: bool = False


class TokenizeResponse(WireModel):
    """The part of vLLM's answer that is used."""

    model_config = ConfigDict(extra="ignore")

    count: int


class PolicyDescription(WireModel):
    """`GET /medvr/v1/policy`: what is served and what a caller must know to use it."""

    model: str
    """Name from the policy's manifest."""
    run: str
    """Training run the weights come from; `base` before any swap."""
    version: int
    weights_sha256: str | None
    """Digest of the weights served, the same wherever they lie; null for a checkpoint on a hub."""
    channel: str | None
    """The weights channel this replica follows."""
    entropy_mode: Literal["exact", "off"]
    """With `off`, which is for a benchmark, every entropy that is reported is 0."""
    tools: list[str]
    view: WirePixelLimits
    crop: WirePixelLimits
    min_side_px: int
    max_turns: int
    max_model_len_tokens: int
    max_images: int
    """Most images in one prompt."""
    max_entropy_tokens: int
    vllm_version: str
