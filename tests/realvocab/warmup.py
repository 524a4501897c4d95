"""Seconds of supervised steps after which the random policy speaks in the conversation's form.

Only the text layers and the head's rows of the words in use learn; the vision tower and the
embedding stay as they were drawn. The softmax is over all rows: those in use, and a sample of the
others weighed up to their number. Boxes and answers are drawn at random, so that is all the policy
can know of them.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import torch
from torch.nn import functional

from shared.agent.prompt import (
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.agent.tools import ZOOM_IN, zoom_caption
from shared.geometry import ImageSize
from tests.realvocab.vocabulary import TOKEN_IDS, build_tokenizer

from transformers import (  # isort: skip - the vocabulary has declared torchvision's operators
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

QUESTION = "Which kind of lesion is it?"
OPTIONS = ("ring", "disc")
VIEW_SIZE = ImageSize(168, 140)
CROP_SIZE = ImageSize(112, 84)
NUM_LOOKS = 3
NUM_STEPS = 220
CONVERSATIONS_PER_STEP = 4
_NUM_CONVERSATIONS = 256
_NUM_NOISES = 4
_NUM_OTHER_ROWS = 512
_IGNORED = -100
_FIRST_OF_COORDINATE = (10, 30, 60, 80)
"""Each coordinate has tens of its own: two small layers need not learn to count to four."""
_THOUGHTS = ("let me look closer", "something is there", "unclear, zoom in")
_CONCLUSIONS = ("now it is clear", "I can see it")


def spell_call(bbox_2d: list[int], form: int) -> str:
    """The three ways in which policies of this family write a call: spaced, tight, on own lines."""
    call = {"name": ZOOM_IN.name, "arguments": {"bbox_2d": bbox_2d}}
    body = json.dumps(call, separators=(",", ":") if form == 1 else None)
    return f"<tool_call>\n{body}\n</tool_call>" if form == 2 else f"<tool_call>{body}</tool_call>"


@dataclass(frozen=True)
class _Spelt:
    ids: list[int]
    labels: list[int]


@lru_cache(maxsize=64)
def _ids(text: str) -> list[int]:
    return build_tokenizer().encode(text, add_special_tokens=False)


def _image_ids(size: ImageSize) -> list[int]:
    pads = [TOKEN_IDS["<|image_pad|>"]] * size.num_image_tokens
    return [TOKEN_IDS["<|vision_start|>"], *pads, TOKEN_IDS["<|vision_end|>"]]


def _conversation(random: Random) -> _Spelt:
    """A prompt, some looks, what they show, an answer; only what the policy says is trained."""
    spans = [
        (_ids(prompt_before_image((ZOOM_IN,))), False),
        (_image_ids(VIEW_SIZE), False),
        (_ids(prompt_after_image(QUESTION, OPTIONS)), False),
    ]
    for _ in range(NUM_LOOKS):
        box = [start + random.randrange(20) for start in _FIRST_OF_COORDINATE]
        look = f"<think>{random.choice(_THOUGHTS)}</think>" + spell_call(box, random.randrange(3))
        spans += [
            (_ids(look), True),
            (_ids(observation_before_image()), False),
            (_image_ids(CROP_SIZE), False),
            (_ids(observation_after_image(zoom_caption(box))), False),
        ]
    answer = f"<think>{random.choice(_CONCLUSIONS)}</think><answer>{random.choice('AB')}</answer>"
    spans.append((_ids(answer), True))
    return _Spelt(
        [i for ids, _ in spans for i in ids],
        [i if is_said else _IGNORED for ids, is_said in spans for i in ids],
    )


@dataclass(frozen=True)
class _Noise:
    """Images of noise as the text model sees them: those of one conversation."""

    features: torch.Tensor
    grid_thw: torch.Tensor


@torch.no_grad()
def _noise(model: Qwen2_5_VLForConditionalGeneration, seed: int) -> _Noise:
    random = np.random.default_rng(seed)
    images = [
        random.integers(0, 255, (size.height_px, size.width_px, 3), dtype=np.uint8)
        for size in (VIEW_SIZE, *[CROP_SIZE] * NUM_LOOKS)
    ]
    inputs = Qwen2VLImageProcessor()(images=images, do_resize=False, return_tensors="pt")
    grid_thw = inputs["image_grid_thw"]
    features = model.model.get_image_features(inputs["pixel_values"], grid_thw).pooler_output
    return _Noise(torch.cat(list(features)), grid_thw)


def _states_before(
    model: Qwen2_5_VLForConditionalGeneration, batch: list[_Spelt], noise: _Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states before every trained token, and these tokens; all see the same noise."""
    ids_BL = _padded([c.ids for c in batch], TOKEN_IDS["<|endoftext|>"])
    labels_BL = _padded([c.labels for c in batch], _IGNORED)
    is_image_BL = ids_BL == TOKEN_IDS["<|image_pad|>"]
    positions, _ = model.model.get_rope_index(
        ids_BL,
        mm_token_type_ids=is_image_BL.int(),
        image_grid_thw=noise.grid_thw.repeat(len(batch), 1),
        attention_mask=_padded([[1] * len(c.ids) for c in batch], 0),
    )
    embedded = model.get_input_embeddings()(ids_BL).detach()
    features = noise.features.repeat(len(batch), 1)
    hidden_BLD = model.model.language_model(
        inputs_embeds=embedded.masked_scatter(is_image_BL[..., None], features),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    is_said = labels_BL[:, 1:] != _IGNORED
    return hidden_BLD[:, :-1][is_said], labels_BL[:, 1:][is_said]


def _padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


class _Head:
    """The head's rows in use, which learn, and the many others, of which each step sees a few."""

    def __init__(self, head: torch.nn.Linear, used: torch.Tensor) -> None:
        self.rows = head.weight.detach()[used].clone().requires_grad_()
        self._weight, self._used = head.weight.detach(), used
        self._column_of_id = torch.full((head.out_features,), -1)
        self._column_of_id[used] = torch.arange(len(used))
        self._others = (self._column_of_id < 0).nonzero()[:, 0]
        self._surplus = math.log(len(self._others) / _NUM_OTHER_ROWS)

    def loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean −ln p of the targets over all rows, estimated."""
        sample = self._others[torch.randint(len(self._others), (_NUM_OTHER_ROWS,))]
        others = states @ self._weight[sample].T + self._surplus
        logits = torch.cat([states @ self.rows.T, others], dim=1)
        return functional.cross_entropy(logits, self._column_of_id[targets])

    def write(self) -> None:
        """Put what was learnt into the model."""
        self._weight[self._used] = self.rows.detach()


def warm_up(model: Qwen2_5_VLForConditionalGeneration, seed: int) -> list[float]:
    """Teach the form in place; the loss of every step, nats per token over all rows."""
    random = Random(seed)
    torch.manual_seed(seed)
    conversations = [_conversation(random) for _ in range(_NUM_CONVERSATIONS)]
    noises = [_noise(model, number) for number in range(_NUM_NOISES)]
    said = {i for c in conversations for i in c.labels if i != _IGNORED}
    head = _Head(model.lm_head, torch.tensor(sorted(said)))
    text = model.model.language_model
    layers = [*text.layers.parameters(), *text.norm.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": layers, "peak": 4e-3}, {"params": [head.rows], "peak": 3e-2}],
        betas=(0.9, 0.98),
    )
    losses: list[float] = []
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 20, (NUM_STEPS - step) / 60)
        batch = random.sample(conversations, CONVERSATIONS_PER_STEP)
        loss = head.loss(*_states_before(model, batch, noises[step % _NUM_NOISES]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    head.write()
    return losses


def tempt(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make the image placeholder as likely as the word that every turn begins with.

    Whoever forgets to forbid it, by its name in this vocabulary, is found out at once.
    """
    first, *_ = _ids("<think>")
    with torch.no_grad():
        model.lm_head.weight[TOKEN_IDS["<|image_pad|>"]] = model.lm_head.weight[first]
