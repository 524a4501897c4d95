"""The shipped base, loaded once."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

BASE = Path(__file__).parents[2] / "services" / "trainer" / "tiny" / "base"


@pytest.fixture(scope="session")
def base_folder() -> Path:
    return BASE


@pytest.fixture(scope="session")
def base_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="session")
def base_model() -> Qwen2_5_VLForConditionalGeneration:
    torch.set_num_threads(2)
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(BASE).float().eval()
