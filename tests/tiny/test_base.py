"""Spot checks of what the shipped base's manifest claims, on brain phantoms never trained on."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from services.problems.phantoms import OPTIONS, QUESTION, Phantom, render_phantom
from services.trainer.tiny.measure import is_hit
from services.trainer.tiny.sampling import Sampled, read_crops, sample
from services.trainer.tiny.sequences import Speller
from shared.weights import PolicyManifest

NUM_PHANTOMS = 60
SAMPLES_EACH = 4


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [render_phantom("brain", 11, index) for index in range(NUM_PHANTOMS)]


@pytest.fixture(scope="module")
def sampled(
    base_model: Qwen2_5_VLForConditionalGeneration,
    base_tokenizer: PreTrainedTokenizerBase,
    phantoms: list[Phantom],
) -> list[Sampled]:
    speller = Speller(base_tokenizer, QUESTION, OPTIONS)
    pictures = [p.image for p in phantoms for _ in range(SAMPLES_EACH)]
    return sample(base_model, speller, pictures, torch.Generator().manual_seed(0))


def test_the_manifest_is_a_policy_manifest_of_the_tiny_policy(base_folder: Path) -> None:
    manifest = msgspec.json.decode((base_folder / "medvr.json").read_bytes(), type=PolicyManifest)
    assert (manifest.format, manifest.name, manifest.tools) == (1, "tiny", ["zoom_in"])
    assert 0.15 <= manifest.made_by["metrics"]["brain_hit_rate"] <= 0.5
    assert (base_folder / "model.safetensors").stat().st_size < 10_000_000


def test_the_base_writes_the_taught_form_as_often_as_its_manifest_says(
    sampled: list[Sampled], base_folder: Path
) -> None:
    manifest = msgspec.json.decode((base_folder / "medvr.json").read_bytes(), type=PolicyManifest)
    claimed = manifest.made_by["metrics"]["brain_well_formed"]
    measured = np.mean([s.well_formed for s in sampled])
    assert measured >= 0.88
    assert abs(measured - claimed) <= 0.06


def test_the_base_finds_lesions_sometimes(sampled: list[Sampled], phantoms: list[Phantom]) -> None:
    owners = [p for p in phantoms for _ in range(SAMPLES_EACH)]
    hits = [is_hit(s, p.box, 336 * 336) for s, p in zip(sampled, owners, strict=True)]
    assert 0.13 <= np.mean(hits) <= 0.55


def test_the_base_samples_many_different_boxes(sampled: list[Sampled]) -> None:
    boxes = {s.bbox_2d for s in sampled if s.bbox_2d}
    assert len(boxes) >= 100


def test_the_base_reads_a_crop_that_shows_the_lesion(
    base_model: Qwen2_5_VLForConditionalGeneration,
    base_tokenizer: PreTrainedTokenizerBase,
    phantoms: list[Phantom],
) -> None:
    speller = Speller(base_tokenizer, QUESTION, OPTIONS)
    boxes = [
        tuple(min(max(0, round((c / 2 - 21) / 7) * 7), 126) for c in (p.lesion.x, p.lesion.y))
        for p in phantoms
    ]
    calls = [(x, y, x + 42, y + 42) for x, y in boxes]
    answers = read_crops(base_model, speller, [p.image for p in phantoms], calls)
    right = [a == p.gold_answer for a, p in zip(answers, phantoms, strict=True)]
    assert np.mean(right) >= 0.95
