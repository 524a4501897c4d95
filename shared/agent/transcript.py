"""What the policy has been shown and has written, as the segments of its next request.

Runs of token ids are kept as one segment that grows in place, so a turn adds to the request
instead of building it anew. A transcript belongs to one attempt and is never shared: the lists in
it are its own. Segments are built without validation, because their content came from the policy
server in the first place.
"""

from collections.abc import Sequence

import msgspec

from shared.api.policy import GenerateResponse, ImageSegment, Segment, TokensSegment
from shared.geometry import ImageSize
from shared.trajectory import Generation, ImageSpan, Span, TextSpan, Turn, VersionSpan


class Transcript:
    """Segments of everything so far, and how many tokens they are."""

    def __init__(self, prompt: Sequence[Span] | None = None) -> None:
        self.segments: list[Segment] = []
        self.num_tokens = 0
        for span in prompt or ():
            self.add_span(span)

    def add_tokens(self, token_ids: Sequence[int]) -> None:
        """What the policy sampled, or a text with its ids."""
        if not token_ids:
            return
        self.num_tokens += len(token_ids)
        last = self.segments[-1] if self.segments else None
        if isinstance(last, TokensSegment):
            last.token_ids.extend(token_ids)
        else:
            segment = TokensSegment.model_construct(type="tokens", token_ids=list(token_ids))
            self.segments.append(segment)

    def add_span(self, span: Span) -> None:
        """What the policy was shown; an image stays an image."""
        if isinstance(span, TextSpan):
            self.add_tokens(span.token_ids)
            return
        self.num_tokens += len(span.token_ids)
        self.segments.append(ImageSegment.model_construct(type="image", image=span.image))

    def add_turn(self, turn: Turn) -> None:
        """A whole turn with its observation."""
        self.add_tokens(turn.generation.token_ids)
        for span in turn.observation:
            self.add_span(span)

    def add_answered(
        self,
        sent: Sequence[Segment],
        token_ids: Sequence[list[int]],
        image_sizes: Sequence[ImageSize],
    ) -> list[Span]:
        """Segments the server has tokenised (`token_ids`, one list each), as spans on record."""
        sizes = iter(image_sizes)
        spans: list[Span] = []
        for segment, ids in zip(sent, token_ids, strict=True):
            if isinstance(segment, ImageSegment):
                spans.append(ImageSpan(token_ids=ids, image=segment.image, size=next(sizes)))
            else:
                spans.append(TextSpan(token_ids=ids))
        for span in spans:
            self.add_span(span)
        return spans


def generation_of(response: GenerateResponse) -> Generation:
    """What the policy sampled, as it is kept on record."""
    return Generation(
        token_ids=response.token_ids,
        token_texts=response.token_texts,
        sampled_logprobs=response.sampled_logprobs,
        entropies_nats=response.entropies_nats,
        version_spans=[VersionSpan(s.version, s.num_tokens) for s in response.version_spans],
        stop=response.stop,
        hit_token_limit=response.finish == "length",
    )


def first_tokens(generation: Generation, num_tokens: int) -> Generation:
    """The first tokens of a turn with all that is known of them: what a branch inherits."""
    spans: list[VersionSpan] = []
    left = num_tokens
    for span in generation.version_spans:
        if left > 0:
            spans.append(VersionSpan(span.version, min(left, span.num_tokens)))
        left -= span.num_tokens
    return Generation(
        token_ids=generation.token_ids[:num_tokens],
        token_texts=generation.token_texts[:num_tokens],
        sampled_logprobs=generation.sampled_logprobs[:num_tokens],
        entropies_nats=generation.entropies_nats[:num_tokens],
        version_spans=spans,
        stop=None,
    )


def joined(begun: Generation, rest: Generation) -> Generation:
    """A turn whose first tokens were inherited."""
    return msgspec.structs.replace(
        rest,
        token_ids=begun.token_ids + rest.token_ids,
        token_texts=begun.token_texts + rest.token_texts,
        sampled_logprobs=begun.sampled_logprobs + rest.sampled_logprobs,
        entropies_nats=begun.entropies_nats + rest.entropies_nats,
        version_spans=begun.version_spans + rest.version_spans,
    )
