"""vLLM serves the second checkpoint: whole conversations, measured exactly over 152,064 columns."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from services.trainer.images import ImageSource
from services.trainer.model import Policy
from services.trainer.sample import build_samples
from shared.agent.episode import CallMade
from shared.agent.prompt import TURN_STOPS, VISION_PLACEHOLDERS
from shared.api.policy import EntropyRequest, ImageSegment, Segment, TextSegment
from shared.blobs import BlobStore
from shared.clients.policy import PolicyClient
from shared.render import encode_png
from shared.trajectory import Generation, ImageSpan, StopReason, Turn, spans_of
from tests.policy.reference import Reference
from tests.realvocab.played import Attempts, RunningStack, picture
from tests.realvocab.vocabulary import TOKEN_IDS, build_tokenizer
from tests.realvocab.warmup import spell_call
from tests.trainer.trees import tree_logprobs

BOX = re.compile(r'"bbox_2d"\s*:\s*\[\s*(?P<box>-?\d[^\]]*\])')
TOOL_WINDOW = 8


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


def turns(attempts: list[Attempts]) -> Iterator[Turn]:
    for played in attempts:
        for trajectory in played.trajectories:
            yield from trajectory.turns


def shown(blobs: BlobStore, span: ImageSpan) -> Image.Image:
    return Image.open(io.BytesIO(blobs.get(span.image))).convert("RGB")


def test_the_policy_looks_closer_and_answers(attempts: list[Attempts]) -> None:
    trajectories = [t for played in attempts for t in played.trajectories]
    assert Counter(t.stop_reason for t in trajectories)[StopReason.ANSWERED] >= 6
    crops = [turn.call.crop for turn in turns(attempts) if turn.call and turn.call.crop]
    assert len(crops) >= 9
    assert len({crop.size for crop in crops}) >= 2, "of several shapes"
    spellings = {
        "".join(re.sub(r"\d+", "0", c.text)) for c in (t.generation for t in turns(attempts))
    }
    assert len(spellings) >= 4, "and spelt in several ways"


def test_a_turn_ends_with_the_token_that_completes_its_stop(attempts: list[Attempts]) -> None:
    for turn in turns(attempts):
        generation = turn.generation
        *before, last = generation.token_texts
        assert len(generation.token_ids) == len(generation.token_texts)
        if generation.stop == "</tool_call>":
            assert generation.text.endswith("</tool_call>")
            assert generation.token_ids[-1] == TOKEN_IDS["</tool_call>"]
        elif generation.stop == "</answer>":
            assert "</answer>" in generation.text
            assert last.startswith(">")
        assert not any(stop in "".join(before) for stop in TURN_STOPS)


def test_no_vision_placeholder_is_ever_sampled(attempts: list[Attempts]) -> None:
    """Unmasked, every turn would begin with one as often as not (`tempt`)."""
    forbidden = {TOKEN_IDS[text] for text in VISION_PLACEHOLDERS}
    sampled = [token_id for turn in turns(attempts) for token_id in turn.generation.token_ids]
    assert len(sampled) > 500
    assert not forbidden.intersection(sampled)


def check_call(made: CallMade, told: Generation) -> None:
    """The prefix ends right before the box; H_tool is over the box's tokens alone."""
    match = BOX.search(told.text)
    assert match is not None
    ends = np.cumsum([len(text) for text in told.token_texts])
    first = int(np.searchsorted(ends, match.start("box"), side="right"))
    last = int(np.searchsorted(ends, match.end("box") - 1, side="right"))
    kept = made.prefix.generation
    assert kept.token_ids == told.token_ids[:first]
    assert told.text.startswith(kept.text)
    assert told.token_texts[first][0] == match["box"][0], "a digit stands alone"
    entropies = told.entropies_nats[first : last + 1]
    width = min(TOOL_WINDOW, len(entropies))
    windows = [fmean(entropies[i : i + width]) for i in range(len(entropies) - width + 1)]
    assert made.tool_entropy_nats == pytest.approx(max(windows))
    assert "]" in told.token_texts[last]


def test_forks_are_cut_before_the_box_and_its_entropy_covers_it(attempts: list[Attempts]) -> None:
    num_calls = 0
    for played in attempts:
        by_id = {t.trajectory_id: t for t in played.trajectories}
        for made in played.calls:
            told = by_id[made.trajectory_id].turns[len(made.prefix.turns)].generation
            check_call(made, told)
            assert made.tool_entropy_nats > made.prefix.baseline_entropy_nats, "a place is a guess"
            num_calls += 1
    assert num_calls >= 9


def test_entropies_and_logprobs_are_those_of_the_full_softmax(
    attempts: list[Attempts], reference: Reference, stack: RunningStack
) -> None:
    """Of whole trajectories, each of their turns after all that was shown before it."""
    for played in attempts:
        trajectory = max(played.trajectories, key=lambda t: len(t.turns))
        ids: list[int] = []
        images: list[Image.Image] = []
        for span in spans_of(played.group().prompt, trajectory):
            if isinstance(span, Generation):
                logprobs, entropies = reference.continuation(ids, images, span.token_ids)
                assert np.abs(np.array(span.sampled_logprobs) - logprobs).mean() < 1e-3
                # Kernels of two libraries differ most where the model is least sure.
                differences = np.abs(np.array(span.entropies_nats) - entropies)
                assert differences.mean() < 5e-5
                assert differences.max() < 1e-3
            elif isinstance(span, ImageSpan):
                images.append(shown(stack.blobs, span))
            ids += span.token_ids


def test_engine_and_trainer_agree_over_whole_trajectories(
    attempts: list[Attempts], stack: RunningStack, checkpoint: Path
) -> None:
    policy = Policy.load(checkpoint, torch.device("cpu"))
    images = ImageSource(stack.blobs, checkpoint)
    differences: list[float] = []
    for played in attempts:
        group = played.group()
        samples = build_samples(group, [0.0] * len(group.trajectories), policy.limits)
        images.hold(span for sample in samples for span in sample.images)
        with torch.no_grad():
            computed = tree_logprobs(policy, [samples], images)
        sampled = torch.tensor([x for s in samples for x in s.sampled_logprobs])
        differences += (computed - sampled).abs().tolist()
    assert len(differences) > 500
    assert fmean(differences) < 1e-3
    assert max(differences) < 2e-2


async def test_images_of_any_sizes_stand_where_transformers_puts_them(
    stack: RunningStack, reference: Reference
) -> None:
    policy, random = PolicyClient(stack.lines.policy_url), Random(3)
    for number in range(6):
        sizes = [(28 * random.randint(2, 9), 28 * random.randint(2, 9)) for _ in range(4)]
        pictures = [
            picture(10 * number + i, size) for i, size in enumerate(sizes[: number % 4 + 1])
        ]
        segments: list[Segment] = [TextSegment(text="<|im_start|>user\nCompare")]
        for image in pictures:
            segments += [ImageSegment(image=stack.blobs.put(encode_png(image)))]
            segments += [TextSegment(text=f" image {'x' * random.randint(1, 40)}")]
        said = "<think>unclear, zoom in</think>" + spell_call([12, 34, 78, 90], number % 3)
        scored = await policy.entropy(EntropyRequest(segments=segments, continuation=said))
        ids = sent_ids(segments, pictures)
        logprobs, entropies = reference.continuation(ids, pictures, scored.token_ids)
        assert np.abs(np.array(scored.logprobs) - logprobs).max() < 2e-3
        assert np.abs(np.array(scored.entropies_nats) - entropies).max() < 1e-3
        assert "".join(scored.token_texts) == said
        assert scored.tool_entropy_nats is not None
        turned = [image.transpose(Image.Transpose.ROTATE_180) for image in pictures]
        others, _ = reference.continuation(ids, turned, scored.token_ids)
        assert np.abs(others - logprobs).max() > 5e-3, "what is shown is heard"
    await policy.aclose()


def sent_ids(segments: list[Segment], pictures: list[Image.Image]) -> list[int]:
    """Ids of a prompt, images expanded."""
    left, ids = list(pictures), []
    for segment in segments:
        if isinstance(segment, TextSegment):
            ids += build_tokenizer().encode(segment.text, add_special_tokens=False)
        else:
            width, height = left.pop(0).size
            pads = [TOKEN_IDS["<|image_pad|>"]] * (width // 28 * (height // 28))
            ids += [TOKEN_IDS["<|vision_start|>"], *pads, TOKEN_IDS["<|vision_end|>"]]
    return ids
