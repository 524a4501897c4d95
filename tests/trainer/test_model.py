"""The trainer's log-probabilities and gradients against transformers' own forward, one by one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from services.trainer.batch import MicroBatch, collate, cut_batch
from services.trainer.images import ImageSource
from services.trainer.model import Policy, resolve_checkpoint
from services.trainer.sample import TrainingSample, build_group
from shared.blobs import BlobStore
from shared.errors import BlobError, WeightsError
from shared.geometry import ImageSize
from tests.trainer.groups import GroupBuilder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return Policy.load(checkpoint, CPU)


@pytest.fixture
def images(checkpoint: Path, blob_url: str) -> ImageSource:
    return ImageSource(BlobStore(blob_url), checkpoint)


@pytest.fixture
def samples(policy: Policy, builder: GroupBuilder, images: ImageSource) -> list[TrainingSample]:
    """Two groups: trajectories of different lengths with one to three images each."""
    groups = [build_group(builder.group(s), policy.limits, divide=True) for s in (1, 2)]
    built = [sample for group in groups for sample in group.samples]
    images.hold(span for sample in built for span in sample.images)
    return built


def batch_of(
    samples: Sequence[TrainingSample], weights: Sequence[float], policy: Policy, images: ImageSource
) -> MicroBatch:
    pad = policy.limits.image_token_id
    return collate(samples, weights, images, image_token_id=pad, device=CPU)


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
    samples: list[TrainingSample],
    images: ImageSource,
    checkpoint: Path,
    blob_url: str,
) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    batch = batch_of(samples, [1.0] * len(samples), policy, images)
    with torch.no_grad():
        ours = policy.trained_logprobs(batch)
        plain = torch.cat(
            [
                plain_logprobs(model, checkpoint, blob_url, s, policy.limits.forbidden_token_ids)
                for s in samples
            ]
        )
    assert len(ours) == sum(s.num_trained_tokens for s in samples)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)


def test_a_shared_image_is_encoded_once(
    policy: Policy, samples: list[TrainingSample], images: ImageSource
) -> None:
    batch = batch_of(samples, [1.0] * len(samples), policy, images)
    # each group: one view shown to four trajectories, and 1 + 0 + 2 + 1 crops of their own
    assert len(batch.image_order) == 2 * (4 + 4)
    assert len(batch.grid_thw) == 2 * (1 + 4)


def wholly_in_float64(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """The policy without the float32 islands that transformers has in norms and vision rotation.

    There the sum of gradients is rounded before, and the gradients of a sum after: 1e-7 apart.
    """
    policy.double()
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm):
                norm = torch.nn.RMSNorm(len(child.weight), child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)

    def rotate(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        half = modeling_qwen2_5_vl.rotate_half
        return query * cos + half(query) * sin, key * cos + half(key) * sin

    monkeypatch.setattr(modeling_qwen2_5_vl, "apply_rotary_pos_emb_vision", rotate)
    return policy


def test_the_gradient_is_the_sum_of_the_gradients_one_by_one(
    checkpoint: Path,
    samples: list[TrainingSample],
    images: ImageSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = wholly_in_float64(Policy.load(checkpoint, CPU), monkeypatch)
    weights = torch.linspace(0.5, 2.0, len(samples)).tolist()

    def gradient(chunks: list[tuple[list[TrainingSample], list[float]]]) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        for chunk, chunk_weights in chunks:
            batch = batch_of(chunk, chunk_weights, policy, images)
            (policy.trained_logprobs(batch) * batch.weights_N.double()).sum().backward()
        return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}

    together = gradient([(samples, weights)])
    one_by_one = gradient([([s], [w]) for s, w in zip(samples, weights, strict=True)])
    assert together.keys() == one_by_one.keys()
    assert any("visual" in name for name in together)
    for name, grad in together.items():
        assert (grad - one_by_one[name]).abs().max() < 1e-9, name
        assert grad.abs().max() > 1e-6, name


def test_nothing_flows_to_what_the_policy_did_not_write(
    policy: Policy, samples: list[TrainingSample], images: ImageSource
) -> None:
    """The loss is a function of the distributions at trained positions alone."""
    batch = batch_of(samples, [1.0] * len(samples), policy, images)
    captured: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output.retain_grad()
        captured.append(output)
        return output

    hook = policy.model.lm_head.register_forward_hook(keep)
    policy.trained_logprobs(batch).sum().backward()
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


def test_cutting_keeps_order_and_weights_of_the_whole(samples: list[TrainingSample]) -> None:
    chunks = cut_batch(samples, 3)
    assert [s for chunk, _ in chunks for s in chunk] == samples
    weights = [w for _, weights in chunks for w in weights]
    assert weights == [1 / (len(samples) * s.num_trained_tokens) for s in samples]


def test_gradient_checkpointing_changes_no_number(
    checkpoint: Path, policy: Policy, samples: list[TrainingSample], images: ImageSource
) -> None:
    saving = Policy.load(checkpoint, CPU, gradient_checkpointing=True)
    batch = batch_of(samples[:3], [1.0] * 3, policy, images)
    gradients = []
    for each in (policy, saving):
        each.zero_grad()
        each.trained_logprobs(batch).sum().backward()
        gradients.append(each.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_bfloat16_arithmetic_stays_near_float32(
    checkpoint: Path, policy: Policy, samples: list[TrainingSample], images: ImageSource
) -> None:
    coarse = Policy.load(checkpoint, CPU, torch.bfloat16)
    batch = batch_of(samples, [1.0] * len(samples), policy, images)
    with torch.no_grad():
        difference = coarse.trained_logprobs(batch) - policy.trained_logprobs(batch)
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
