"""FLOPs counted from trees, against the same counted by hand from the trajectories."""

from pathlib import Path

import pytest
import torch

from benchmarks.arithmetic import step_flops
from benchmarks.groups import Recorded, training_samples
from benchmarks.qwen import Size, config_of
from benchmarks.services import TRAINED
from services.trainer.dry_run.flops import StepFlops
from services.trainer.dry_run.shape import ModelShape, shape_of
from services.trainer.model import Policy
from services.trainer.packing import pack_groups
from services.trainer.sample import TrainingSample, shared_tokens
from shared.blobs import BlobStore


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(TRAINED, torch.device("cpu"))


@pytest.fixture
def samples(policy: Policy, tmp_path: Path) -> list[TrainingSample]:
    """A base and its branch, seen at 336 px: the branch shares prompt and thought."""
    (group,) = Recorded("large", 1, 336, 2).groups(TRAINED, BlobStore(str(tmp_path)))
    return training_samples(group, policy.limits)


def counted(
    shape: ModelShape, samples: list[TrainingSample], *, packed: bool, **how: bool
) -> StepFlops:
    groups = [[sample] for sample in samples] if packed else [samples]
    return step_flops(shape, [samples], pack_groups(groups, 787, 16_384), **how)


def test_trees_count_what_is_shared_once(policy: Policy, samples: list[TrainingSample]) -> None:
    shape = shape_of(policy.model.config)
    base, branch = (len(sample.input_ids) for sample in samples)
    shared = shared_tokens(samples[1], samples[0])
    trees, packed = (counted(shape, samples, packed=p) for p in (False, True))
    per_token = 6 * shape.text.num_blocks * shape.text.parameters
    assert packed.text == per_token * (base + branch)
    assert trees.text == per_token * (base + branch - shared)
    per_pair = 12 * shape.text.num_blocks * shape.text.query
    assert packed.text_attention == per_pair * (base**2 + branch**2) / 2
    assert trees.text_attention == per_pair * (base**2 + branch**2 - shared**2) / 2
    assert packed.vision == trees.vision, "images are shared in both"
    num_trained = sum(sample.num_trained_tokens for sample in samples)
    assert packed.head == 6 * shape.embedding * num_trained
    assert trees.head == 6 * shape.embedding * (num_trained - sum(samples[1].loss_mask[:shared]))


def test_images_of_their_own_cost_as_often_as_they_are_shown(
    policy: Policy, samples: list[TrainingSample]
) -> None:
    shape = shape_of(policy.model.config)
    twins = [samples[0]] * 3
    alone, shared = (
        counted(shape, twins, packed=True, share_images=share) for share in (False, True)
    )
    assert alone.vision == 3 * shared.vision
    assert alone.vision_attention == 3 * shared.vision_attention
    assert alone.text == shared.text


@pytest.mark.parametrize(
    ("size", "billions"), [(Size.QWEN_3B, 3.754622976), (Size.QWEN_7B, 8.292166656)]
)
def test_qwen_has_as_many_parameters_as_published(size: Size, billions: float) -> None:
    from transformers import AutoTokenizer

    shape = shape_of(config_of(size, AutoTokenizer.from_pretrained(TRAINED)))
    assert shape.parameters == round(billions * 1e9)


def test_frozen_weights_need_no_gradient(policy: Policy, samples: list[TrainingSample]) -> None:
    shape = shape_of(policy.model.config)
    whole, lora = (counted(shape, samples, packed=False, lora=lora) for lora in (False, True))
    assert lora.text == whole.text * 4 / 6
    assert lora.vision_attention == whole.vision_attention / 3
