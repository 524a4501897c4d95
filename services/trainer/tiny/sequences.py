"""Token sequences of whole conversations, with what is trained in them and where each token is.

Text is tokenised segment by segment, exactly as the rollouts do, so that training and serving see
the same ids. An image is `<|vision_start|>`, its placeholders and `<|vision_end|>`; its tokens sit
at (t, h, w) positions as mRoPE wants them. All images are of one size (36 tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerBase

from services.trainer.tiny.wording import (
    ANSWER_THOUGHTS,
    LOOK_THOUGHTS,
    answer_turn,
    look_turn,
    window_turn,
)
from shared.agent.prompt import (
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.agent.tools import ZOOM_IN, Tool, window_caption, zoom_caption
from shared.trajectory import WindowArguments

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences; L is the longest."""

    ids_BL: torch.Tensor
    labels_BL: torch.Tensor
    """The id itself where it is trained, else -100 (not yet shifted)."""
    positions_3BL: torch.Tensor
    mask_BL: torch.Tensor
    """1 for tokens, 0 for padding."""


class Speller:
    """Spells conversations as ids for one tokenizer and one question."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        options: tuple[str, ...],
        grid_hw: tuple[int, int] = (6, 6),
        tools: Sequence[Tool] = (ZOOM_IN,),
    ) -> None:
        self.tokenizer = tokenizer
        self.grid_hw = grid_hw
        self.num_options = len(options)
        self.letters = torch.tensor([self.token(chr(65 + i)) for i in range(len(options))])
        start, pad, end = (
            self.token(t) for t in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
        )
        self.image_ids = [start, *[pad] * (grid_hw[0] * grid_hw[1]), end]
        self.image_pad_id = pad
        self.turn_end_id = self.token("<|im_end|>")
        self.pad_id = self.token("<|endoftext|>")
        self.prompt_ids = [
            *self.ids(prompt_before_image(tools)),
            *self.image_ids,
            *self.ids(prompt_after_image(question, options)),
        ]
        self._ids_of_text = lru_cache(maxsize=4096)(self._encoded)

    def token(self, text: str) -> int:
        """The id of one token."""
        return int(self.tokenizer.convert_tokens_to_ids(text))  # pyright: ignore[reportArgumentType]

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def ids(self, text: str) -> list[int]:
        """The ids of one text segment."""
        return list(self._encoded(text))

    def observation_ids(self, caption: str) -> list[int]:
        """From the end of a turn with a call to the start of the next."""
        return [
            *self._ids_of_text(observation_before_image()),
            *self.image_ids,
            *self._ids_of_text(observation_after_image(caption)),
        ]

    def before_look(self, window: tuple[int, int] | None) -> tuple[list[int], list[int]]:
        """(ids, labels) up to the turn that looks: the prompt, and a window set if there is one."""
        ids, labels = list(self.prompt_ids), [IGNORED] * len(self.prompt_ids)
        if window is None:
            return ids, labels
        setting = self._ids_of_text(window_turn(window))
        observation = self.observation_ids(window_caption(WindowArguments(*window)))
        ids += [*setting, *observation]
        labels += [*setting, self.turn_end_id, *[IGNORED] * (len(observation) - 1)]
        return ids, labels

    def conversation(
        self,
        bbox_2d: tuple[int, int, int, int],
        answer: str,
        thoughts: tuple[int, int],
        *,
        is_imitated: bool = True,
        window: tuple[int, int] | None = None,
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of prompt, window, look, observation, answer; what it says is trained.

        A look that is not imitated is not trained: only the window before and the answer after it.
        """
        ids, labels = self.before_look(window)
        look = list(self._ids_of_text(look_turn(LOOK_THOUGHTS[thoughts[0]], bbox_2d)))
        final = list(self._ids_of_text(answer_turn(ANSWER_THOUGHTS[thoughts[1]], answer)))
        final.append(self.turn_end_id)
        observation = self.observation_ids(zoom_caption(bbox_2d))
        ids += [*look, *observation, *final]
        labels += [
            *(look if is_imitated else [IGNORED] * len(look)),
            *[self.turn_end_id],
            *[IGNORED] * (len(observation) - 1),
            *final,
        ]
        return ids, labels

    def first_turn(
        self, bbox_2d: tuple[int, int, int, int], thought: int
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of prompt and look alone."""
        look = list(self._ids_of_text(look_turn(LOOK_THOUGHTS[thought], bbox_2d)))
        return [*self.prompt_ids, *look], [*[IGNORED] * len(self.prompt_ids), *look]

    def positions(self, ids: list[int]) -> torch.Tensor:
        """mRoPE positions [3, L] of one sequence."""
        height, width = self.grid_hw
        tokens_per_image = height * width
        columns: list[torch.Tensor] = []
        at, cursor = 0, 0
        while cursor < len(ids):
            if ids[cursor] == self.image_pad_id:
                flat = torch.arange(tokens_per_image)
                block = torch.stack([torch.zeros_like(flat), flat // width, flat % width])
                columns.append(block + at)
                at += max(height, width)
                cursor += tokens_per_image
            else:
                columns.append(torch.full((3, 1), at))
                at += 1
                cursor += 1
        return torch.cat(columns, dim=1)

    def batch(self, conversations: list[tuple[list[int], list[int]]]) -> Batch:
        """Conversations as one right-padded batch."""
        longest = max(len(ids) for ids, _ in conversations)
        shape = (len(conversations), longest)
        ids_BL = torch.full(shape, self.pad_id)
        labels_BL = torch.full(shape, IGNORED)
        mask_BL = torch.zeros(shape, dtype=torch.long)
        positions_3BL = torch.zeros((3, *shape), dtype=torch.long)
        for row, (ids, labels) in enumerate(conversations):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            labels_BL[row, : len(ids)] = torch.tensor(labels)
            mask_BL[row, : len(ids)] = 1
            positions_3BL[:, row, : len(ids)] = self.positions(ids)
        return Batch(ids_BL, labels_BL, positions_3BL, mask_BL)
