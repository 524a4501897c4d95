"""Samples two-turn trajectories from a tiny policy in this process: only to measure it.

Rollouts proper go through the policy service. This sampler follows the same words and the same
rendering, allows one zoom, and calls the second turn the last: whatever does not answer then counts
as badly formed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.architecture import CROP_LIMITS, VIEW_LIMITS
from services.trainer.tiny.forward import hidden_states, image_features
from services.trainer.tiny.pixels import to_patches
from services.trainer.tiny.recipe import PATCH_GRID_HW
from services.trainer.tiny.sequences import Speller
from shared.agent.tools import zoom_caption
from shared.geometry import (
    BadBox,
    BadBoxReason,
    Box,
    ImageSize,
    place_box,
    smart_resize,
    view_to_original,
)
from shared.render import show_region

MAX_TURN_TOKENS = 40
_CALL = re.compile(
    r'<think>[^<]*</think><tool_call>\{"name": "zoom_in", "arguments": '
    r'\{"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\]\}\}</tool_call>'
)
_ANSWER = re.compile(r"<think>[^<]*</think><answer>([A-Z])</answer>")


@dataclass(frozen=True)
class Sampled:
    """One trajectory of at most one zoom."""

    turns: tuple[tuple[int, ...], ...]
    """Ids the policy wrote, turn by turn."""
    bbox_2d: tuple[int, int, int, int] | None
    """As written; None if the first turn is not a well-formed call."""
    box: Box | None
    """As cropped, in original pixels."""
    crop: NDArray[np.uint8] | None
    """What was shown, [y, x, 3]."""
    answer: str | None
    """The letter; None if the last turn is not a well-formed answer."""

    @property
    def well_formed(self) -> bool:
        """Whether it zoomed once and answered, both in the taught form."""
        return self.box is not None and self.answer is not None


def view_of(original: Image.Image) -> NDArray[np.uint8]:
    """The whole picture as the policy is shown it, [y, x, 3]."""
    return np.asarray(show_region(original, Box.whole(ImageSize(*original.size)), VIEW_LIMITS))


def _cropped(
    original: Image.Image, bbox_2d: tuple[int, int, int, int]
) -> tuple[Box, NDArray[np.uint8]] | None:
    """Box and crop of a call; None if the box is bad or its crop is not of the common size."""
    size = ImageSize(*original.size)
    try:
        box = place_box(view_to_original(bbox_2d, smart_resize(size, VIEW_LIMITS), size), size)
        crop = np.asarray(show_region(original, box, CROP_LIMITS))
    except BadBox:
        return None
    return (box, crop) if crop.shape[:2] == (168, 168) else None


@torch.no_grad()
def encode_pictures(
    model: Qwen2_5_VLForConditionalGeneration, pictures: Sequence[NDArray[np.uint8]]
) -> torch.Tensor:
    """Image tokens of many pictures of the common size, [N, T, H]."""
    chunks = [pictures[i : i + 64] for i in range(0, len(pictures), 64)]
    return torch.cat(
        [
            image_features(model.model.visual, to_patches(np.stack(chunk)), PATCH_GRID_HW)
            for chunk in chunks
        ]
    )


@torch.no_grad()
def _sample_turn(
    model: Qwen2_5_VLForConditionalGeneration,
    speller: Speller,
    prefixes: list[list[int]],
    features: torch.Tensor,
    generator: torch.Generator,
) -> list[list[int]]:
    """One turn after each prefix; `features` are all image tokens of the prefixes, in order."""
    longest = max(len(p) for p in prefixes)
    ids = torch.full((len(prefixes), longest), speller.pad_id)
    mask = torch.zeros_like(ids)
    positions = torch.zeros((3, *ids.shape), dtype=torch.long)
    for row, prefix in enumerate(prefixes):
        ids[row, -len(prefix) :] = torch.tensor(prefix)
        mask[row, -len(prefix) :] = 1
        positions[:, row, -len(prefix) :] = speller.positions(prefix)
    text = model.model.language_model
    embedded = text.embed_tokens(ids)
    embedded = embedded.masked_scatter((ids == speller.image_pad_id).unsqueeze(-1), features)
    cache = DynamicCache()
    at = positions[:, :, -1:] + 1
    stops = {speller.token("</tool_call>"), speller.token("</answer>"), speller.turn_end_id}
    forbidden = [
        speller.token(t)
        for t in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ]
    turns: list[list[int]] = [[] for _ in prefixes]
    done = [False] * len(prefixes)
    for _ in range(MAX_TURN_TOKENS):
        hidden = text(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits = model.lm_head(hidden)
        logits[:, forbidden] = -torch.inf
        chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        for row, token in enumerate(chosen[:, 0].tolist()):
            if not done[row]:
                turns[row].append(token)
                done[row] = token in stops
        if all(done):
            break
        embedded, positions, at = text.embed_tokens(chosen), at, at + 1
        mask = torch.cat([mask, torch.ones_like(chosen)], dim=1)
    return turns


def sample(
    model: Qwen2_5_VLForConditionalGeneration,
    speller: Speller,
    originals: Sequence[Image.Image],
    generator: torch.Generator,
) -> list[Sampled]:
    """One trajectory per picture at temperature 1 (repeat a picture to have several)."""
    unique = {id(o): o for o in originals}
    row_of = {key: i for i, key in enumerate(unique)}
    view_features = encode_pictures(model, [view_of(o) for o in unique.values()])
    views = view_features[[row_of[id(o)] for o in originals]]
    prompts = [speller.prompt_ids] * len(originals)
    first = _sample_turn(model, speller, prompts, views, generator)
    calls = [_CALL.fullmatch(str(speller.tokenizer.decode(turn))) for turn in first]
    boxes = [tuple(int(c) for c in call.groups()) if call else None for call in calls]
    crops = [_cropped(o, b) if b else None for o, b in zip(originals, boxes, strict=True)]  # pyright: ignore[reportArgumentType]
    zoomed = [i for i, crop in enumerate(crops) if crop]
    second: dict[int, list[int]] = {}
    if zoomed:
        crop_features = encode_pictures(model, [crops[i][1] for i in zoomed])  # pyright: ignore[reportOptionalSubscript]
        prefixes = [
            [*speller.prompt_ids, *first[i], *speller.observation_ids(zoom_caption(boxes[i]))]  # pyright: ignore[reportArgumentType]
            for i in zoomed
        ]
        features = torch.stack([views[zoomed], crop_features], dim=1)
        turns = _sample_turn(model, speller, prefixes, features, generator)
        second = dict(zip(zoomed, turns, strict=True))
    sampled: list[Sampled] = []
    for i, box in enumerate(boxes):
        crop = crops[i]
        final = second.get(i)
        answer = _ANSWER.fullmatch(str(speller.tokenizer.decode(final))) if final else None
        sampled.append(
            Sampled(
                turns=(tuple(first[i]), *([tuple(final)] if final else [])),
                bbox_2d=box,  # pyright: ignore[reportArgumentType]
                box=crop[0] if crop else None,
                crop=crop[1] if crop else None,
                answer=answer[1] if answer else None,
            )
        )
    return sampled


def read_crops(
    model: Qwen2_5_VLForConditionalGeneration,
    speller: Speller,
    originals: Sequence[Image.Image],
    calls: Sequence[tuple[int, int, int, int]],
) -> list[str]:
    """The letter thought likeliest after a given call, one per picture."""
    letters = [speller.token(chr(65 + i)) for i in range(speller.num_options)]
    crops = [_cropped(o, call) for o, call in zip(originals, calls, strict=True)]
    if any(crop is None for crop in crops):
        raise BadBox(BadBoxReason.OUTSIDE, "a given call cannot be cropped")
    views = encode_pictures(model, [view_of(o) for o in originals])
    seen = encode_pictures(model, [crop[1] for crop in crops if crop])
    spelt = [speller.conversation(call, "A", (0, 0)) for call in calls]
    batch = speller.batch(spelt)
    with torch.no_grad():
        features = torch.stack([views, seen], dim=1)
        hidden = hidden_states(model, batch, speller.image_pad_id, features)
        before_letter = torch.isin(batch.labels_BL[:, 1:], torch.tensor(letters))
        logits = model.lm_head(hidden[:, :-1][before_letter])[:, letters]
    return [chr(65 + int(i)) for i in logits.argmax(-1)]
