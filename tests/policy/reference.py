"""transformers as the oracle: teacher-forced masked distributions of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from services.policy.torchvision_ops import declare_torchvision_operators
from shared.agent.prompt import VISION_PLACEHOLDERS

declare_torchvision_operators()

from transformers import (  # noqa: E402 - the processor imports torchvision
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
)


class Reference:
    """The same checkpoint in transformers, float32."""

    def __init__(self, checkpoint: Path) -> None:
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer = self.processor.tokenizer
        vocabulary = self.tokenizer.get_vocab()
        self.forbidden_ids = [vocabulary[t] for t in VISION_PLACEHOLDERS if t in vocabulary]
        self._image_pad_id = vocabulary["<|image_pad|>"]

    @torch.no_grad()
    def logits_TV(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> torch.Tensor:
        """Unmasked logits after each position of a sequence with expanded image placeholders."""
        ids = torch.tensor([list(token_ids)])
        inputs: dict[str, torch.Tensor] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._image_pad_id).int(),
        }
        if images:
            pixels = self.processor.image_processor(images=list(images), return_tensors="pt")
            inputs["pixel_values"] = pixels["pixel_values"]
            inputs["image_grid_thw"] = pixels["image_grid_thw"]
        return self._model(**inputs).logits[0].float()

    def continuation(
        self, prompt_ids: Sequence[int], images: Sequence[Image.Image], sampled: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(log-probabilities, entropies) of sampled tokens under the masked distribution, nats."""
        logits = self.logits_TV([*prompt_ids, *sampled], images)
        logits[:, self.forbidden_ids] = -torch.inf
        logprobs = logits[len(prompt_ids) - 1 : -1].double().log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(list(sampled))[:, None])[:, 0]
        entropies = torch.special.entr(logprobs.exp()).sum(-1)
        return chosen.numpy(), entropies.numpy()
