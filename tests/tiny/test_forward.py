"""The batched forward is transformers' own forward; the sequences are what rollouts would spell."""

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from services.problems.phantoms import OPTIONS, QUESTION
from services.trainer.tiny.forward import hidden_states, image_features
from services.trainer.tiny.pixels import image_grids, to_patches
from services.trainer.tiny.sequences import IGNORED, Speller
from services.trainer.tiny.wording import ANSWER_THOUGHTS, LOOK_THOUGHTS, answer_turn, look_turn

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 168, 168, 3)).astype(np.uint8)


def test_patches_are_those_of_the_shipped_processor(base_folder: object) -> None:
    processor = AutoProcessor.from_pretrained(base_folder)
    images = [Image.fromarray(picture) for picture in PICTURES[:2]]
    made = processor.image_processor(images, return_tensors="pt")
    ours = to_patches(PICTURES[:2]).reshape(-1, 1176)
    assert made.image_grid_thw.tolist() == [[1, 12, 12]] * 2
    torch.testing.assert_close(ours, made.pixel_values, atol=1e-6, rtol=0)


def test_batched_vision_and_positions_equal_transformers(
    base_model: Qwen2_5_VLForConditionalGeneration, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    speller = Speller(base_tokenizer, QUESTION, OPTIONS)
    spelt = [
        speller.conversation((7, 14, 49, 56), "C", (0, 1)),
        speller.conversation((112, 105, 154, 147), "F", (1, 0)),
    ]
    batch = speller.batch(spelt)
    patches = to_patches(PICTURES)
    with torch.no_grad():
        features = image_features(base_model.model.visual, patches, (12, 12))
        ours = hidden_states(base_model, batch, speller.image_pad_id, features)
        theirs = base_model.model(
            input_ids=batch.ids_BL,
            attention_mask=batch.mask_BL,
            pixel_values=patches.reshape(-1, 1176),
            image_grid_thw=image_grids(4, 168, 168),
            mm_token_type_ids=(batch.ids_BL == speller.image_pad_id).int(),
        ).last_hidden_state
    real = batch.mask_BL.bool()
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=1e-4)


def test_only_what_the_policy_says_is_trained(base_tokenizer: PreTrainedTokenizerBase) -> None:
    speller = Speller(base_tokenizer, QUESTION, OPTIONS)
    ids, labels = speller.conversation((7, 14, 49, 56), "C", (2, 1))
    trained = [i for i in labels if i != IGNORED]
    said = look_turn(LOOK_THOUGHTS[2], (7, 14, 49, 56)) + "<|im_end|>"
    said += answer_turn(ANSWER_THOUGHTS[1], "C") + "<|im_end|>"
    assert base_tokenizer.decode(trained) == said
    assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    assert ids.count(speller.image_pad_id) == 72
