"""LoRA: what is trained, what it is measured against, and what is published."""

from pathlib import Path

import pytest
import redis
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from services.trainer.images import ImageSource
from services.trainer.model import Policy
from services.trainer.publish import Publisher
from services.trainer.sample import TrainingSample, build_group
from services.trainer.transfer import FilesOnly
from shared.blobs import BlobStore
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import final_state, open_stream, run_settings, steps_of, train
from tests.trainer.trees import tree_logprobs

CPU = torch.device("cpu")


@pytest.fixture
def images(checkpoint: Path, blob_url: str) -> ImageSource:
    return ImageSource(BlobStore(blob_url), checkpoint)


@pytest.fixture
def base(checkpoint: Path) -> Policy:
    return Policy.load(checkpoint, CPU)


@pytest.fixture
def adapted(checkpoint: Path) -> Policy:
    """With adapters that have learnt something."""
    policy = Policy.load(checkpoint, CPU)
    policy.add_adapters(rank=4, alpha=8)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return policy


@pytest.fixture
def groups(base: Policy, builder: GroupBuilder, images: ImageSource) -> list[list[TrainingSample]]:
    samples = build_group(builder.group(1), base.limits, divide=True).samples
    images.hold(span for sample in samples for span in sample.images)
    return [samples]


def test_only_the_text_blocks_have_adapters_and_nothing_else_learns(adapted: Policy) -> None:
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    layers = range(adapted.model.config.text_config.num_hidden_layers)
    where = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    assert trained == {
        f"model.language_model.layers.{layer}.{place}.lora_{side}.medvr.weight"
        for layer in layers
        for place in where
        for side in "AB"
    }
    assert not adapted.trains_vision


def test_without_its_adapters_the_policy_is_the_base(
    base: Policy, adapted: Policy, groups: list[list[TrainingSample]], images: ImageSource
) -> None:
    plain = tree_logprobs(base, groups, images)
    assert (tree_logprobs(adapted, groups, images) - plain).abs().max() > 0.1
    with adapted.without_adapters():
        assert torch.equal(tree_logprobs(adapted, groups, images), plain)
    assert (tree_logprobs(adapted, groups, images) - plain).abs().max() > 0.1


def test_the_published_version_is_a_plain_checkpoint_that_says_the_same(
    adapted: Policy,
    checkpoint: Path,
    groups: list[list[TrainingSample]],
    images: ImageSource,
    tmp_path: Path,
    valkey: redis.Redis,
) -> None:
    publisher = Publisher(
        valkey,
        base=checkpoint,
        root=tmp_path,
        run="r",
        channel="c",
        keep=2,
        transfer=FilesOnly(),
    )
    pointer = publisher.write(dict(adapted.exported(publisher.dtype)), 1)
    merged = Policy.load(Path(pointer.path), CPU)
    torch.testing.assert_close(
        tree_logprobs(merged, groups, images), tree_logprobs(adapted, groups, images),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint).state_dict()
    ours = merged.model.state_dict()
    assert ours.keys() == plain.keys()
    changed = {name for name in plain if not torch.equal(ours[name], plain[name])}
    assert changed == {n for n in plain if "language_model.layers" in n and "_proj.weight" in n}


def test_what_does_not_learn_is_kept_in_the_width_of_the_arithmetic(checkpoint: Path) -> None:
    policy = Policy.load(checkpoint, CPU, torch.bfloat16)
    policy.add_adapters(rank=2, alpha=2)
    assert {(p.requires_grad, p.dtype) for p in policy.parameters()} == {
        (True, torch.float32),
        (False, torch.bfloat16),
    }


def test_a_run_with_adapters_learns_keeps_only_them_and_goes_on(
    tmp_path: Path,
    checkpoint: Path,
    blob_url: str,
    valkey: redis.Redis,
    valkey_url: str,
    builder: GroupBuilder,
) -> None:
    settings = run_settings(
        tmp_path,
        checkpoint=checkpoint,
        blob_url=blob_url,
        redis_url=valkey_url,
        lora_rank=4,
        kl_beta=0.01,
        lr=1e-2,
    )
    open_stream(valkey, "run", *(builder.group(s) for s in range(4)))
    train(settings)
    first, second = steps_of(settings)
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-9)  # an adapter begins as nothing
    assert second["kl_reference"] > 1e-6
    assert [n for n in final_state(settings) if ".lora_" not in n] == []
    newest = settings.weights_root / "run" / "000002"
    assert Qwen2_5_VLForConditionalGeneration.from_pretrained(newest)
