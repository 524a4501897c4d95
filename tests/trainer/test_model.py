"""The trainer's log-probabilities and gradients against transformers' own forward, one by one."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration

from services.trainer.images import ImageSource
from services.trainer.model import Policy, resolve_checkpoint
from services.trainer.sample import TrainingSample, build_group
from shared.blobs import BlobStore
from shared.errors import BlobError, WeightsError
from shared.geometry import ImageSize
from tests.trainer.groups import GroupBuilder
from tests.trainer.trees import one_pack, tree_logprobs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return Policy.load(checkpoint, CPU)


@pytest.fixture
def images(checkpoint: Path, blob_url: str) -> ImageSource:
    return ImageSource(BlobStore(blob_url), checkpoint)


@pytest.fixture
def groups(
    policy: Policy, builder: GroupBuilder, images: ImageSource
) -> list[list[TrainingSample]]:
    """Two groups: trajectories of different lengths with one to three images each."""
    built = [build_group(builder.group(s), policy.limits, divide=True).samples for s in (1, 2)]
    images.hold(span for samples in built for sample in samples for span in sample.images)
    return built


@pytest.fixture
def samples(groups: list[list[TrainingSample]]) -> list[TrainingSample]:
    return [sample for samples in groups for sample in samples]


def plain_logprobs(
    model: Qwen2_5_VLForConditionalGeneration,
    checkpoint: Path,
    blob_url: str,
    sample: TrainingSample,
    forbidden: frozenset[int],
) -> torch.Tensor:
    """What anyone would write: the whole model on one trajectory, then the softmax."""
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    pictures = [
        Image.open(BlobStore(blob_url).path(span.image)).convert("RGB") for span in sample.images
    ]
    inputs = processor(images=pictures, do_resize=False, return_tensors="pt")
    ids = torch.tensor([sample.input_ids])
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        use_cache=False,
        **inputs,
    ).logits[0]
    logits[:, sorted(forbidden)] = float("-inf")
    logprobs = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[torch.tensor(sample.loss_mask[1:])]


def test_logprobs_are_those_of_the_plain_model_one_by_one(
    policy: Policy,
    groups: list[list[TrainingSample]],
    samples: list[TrainingSample],
    images: ImageSource,
    checkpoint: Path,
    blob_url: str,
) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        ours = tree_logprobs(policy, groups, images)
        plain = torch.cat(
            [
                plain_logprobs(model, checkpoint, blob_url, s, policy.limits.forbidden_token_ids)
                for s in samples
            ]
        )
    assert len(ours) == sum(s.num_trained_tokens for s in samples)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)


def test_a_shared_image_is_there_once(
    policy: Policy, groups: list[list[TrainingSample]], images: ImageSource
) -> None:
    tensors, features = one_pack(policy, groups, images)
    # each group: one view, shown to four trajectories, and 1 + 0 + 2 + 1 crops of their own
    assert features is not None
    assert len(features) == len(tensors.image_tokens_S) == 2 * (1 + 4) * 4


def test_nothing_flows_to_what_the_policy_did_not_write(
    policy: Policy,
    groups: list[list[TrainingSample]],
    samples: list[TrainingSample],
    images: ImageSource,
) -> None:
    """The loss is a function of the distributions at trained positions alone."""
    captured: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output.retain_grad()
        captured.append(output)
        return output

    hook = policy.model.lm_head.register_forward_hook(keep)
    tree_logprobs(policy, groups, images).sum().backward()
    hook.remove()
    (logits,) = captured
    num_trained = sum(s.num_trained_tokens for s in samples)
    assert logits.shape[0] == num_trained
    assert logits.grad is not None
    # d ln p(target) / d logits = onehot(target) − p: rows sum to 0, forbidden columns get nothing
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(num_trained), atol=1e-5, rtol=0)
    assert (logits.grad[:, sorted(policy.limits.forbidden_token_ids)] == 0).all()
    targets = torch.tensor(
        [
            token
            for s in samples
            for token, mask in zip(s.input_ids, s.loss_mask, strict=True)
            if mask
        ]
    )
    others = logits.grad.scatter(1, targets[:, None], 0.0)
    assert (others <= 0).all()
    assert (logits.grad.gather(1, targets[:, None]) > 0).all()


def test_the_forbidden_tokens_are_qwens_vision_placeholders(
    policy: Policy, builder: GroupBuilder
) -> None:
    texts = builder.tokenizer.convert_ids_to_tokens(sorted(policy.limits.forbidden_token_ids))
    assert set(texts) == {
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    }


def test_gradient_checkpointing_changes_no_number(
    checkpoint: Path,
    policy: Policy,
    groups: list[list[TrainingSample]],
    images: ImageSource,
) -> None:
    saving = Policy.load(checkpoint, CPU, gradient_checkpointing=True)
    gradients = []
    for each in (policy, saving):
        each.zero_grad()
        tree_logprobs(each, groups[:1], images).sum().backward()
        gradients.append(each.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_bfloat16_arithmetic_stays_near_float32(
    checkpoint: Path,
    policy: Policy,
    groups: list[list[TrainingSample]],
    images: ImageSource,
) -> None:
    coarse = Policy.load(checkpoint, CPU, torch.bfloat16)
    with torch.no_grad():
        fine = tree_logprobs(policy, groups, images)
        difference = tree_logprobs(coarse, groups, images) - fine
    assert coarse.model.get_input_embeddings().weight.dtype is torch.float32
    assert 0 < difference.abs().mean() < 0.05


def test_an_image_of_another_size_than_its_span_says_is_a_blob_error(
    builder: GroupBuilder, images: ImageSource
) -> None:
    span = builder.picture(5)
    lie = type(span)(token_ids=span.token_ids, image=span.image, size=ImageSize(28, 112))
    with pytest.raises(BlobError, match="is 56x56 px, its span says 28x112"):
        images.hold([lie])


def test_a_blob_that_is_no_image_is_a_blob_error(
    builder: GroupBuilder, images: ImageSource
) -> None:
    span = builder.picture(5)
    text = type(span)(
        token_ids=span.token_ids, image=builder.blobs.put(b"no image"), size=span.size
    )
    with pytest.raises(BlobError, match="cannot be decoded"):
        images.hold([text])


def test_a_model_that_is_neither_folder_nor_hub_name_is_named() -> None:
    with pytest.raises(WeightsError, match="/nowhere/model is neither a folder nor a hub name"):
        resolve_checkpoint("/nowhere/model")
