"""The trainer's log-probabilities over 152,064 rows: exact, and never all in memory at once."""

import math
from pathlib import Path

import pytest
import torch

from services.policy.entropy import entropy_nats
from services.trainer.batch import PackTensors
from services.trainer.images import ImageSource
from services.trainer.model import Policy
from services.trainer.sample import build_group
from shared.agent.prompt import VISION_PLACEHOLDERS
from shared.blobs import BlobStore
from tests.realvocab.vocabulary import NUM_ROWS, TOKEN_IDS, build_tokenizer
from tests.trainer.groups import GroupBuilder
from tests.trainer.trees import one_pack

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return Policy.load(checkpoint, CPU)


@pytest.fixture
def pack(
    policy: Policy, checkpoint: Path, tmp_path: Path
) -> tuple[PackTensors, torch.Tensor | None]:
    """A group of four trajectories with up to three images each."""
    blobs = BlobStore(str(tmp_path))
    group = GroupBuilder(build_tokenizer(), blobs).group(1)
    samples = build_group(group, policy.limits, divide=True).samples
    images = ImageSource(blobs, checkpoint)
    images.hold(span for sample in samples for span in sample.images)
    tensors, features = one_pack(policy, [samples], images)
    return tensors, None if features is None else features.detach()


def test_the_limits_are_those_of_the_real_vocabulary(policy: Policy) -> None:
    assert policy.limits.vocabulary_size == NUM_ROWS
    assert policy.limits.image_token_id == 151_655
    assert policy.limits.forbidden_token_ids == {151_652, 151_653, 151_654, 151_655, 151_656}


def test_logits_computed_a_few_at_a_time_change_no_number_and_are_not_kept(
    policy: Policy, pack: tuple[PackTensors, torch.Tensor | None]
) -> None:
    cut = Policy(policy.model, policy.limits, torch.float32, logits_at_once=10 * NUM_ROWS)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    kept_rows: list[list[int]] = []
    for each in (policy, cut):
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            if tensor.ndim == 2 and tensor.shape[1] == NUM_ROWS:
                kept.append(len(tensor))
            return tensor

        policy.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs = each.trained_logprobs(*pack)
        logprobs.sum().backward()
        grad = policy.model.lm_head.weight.grad
        assert grad is not None
        results.append((logprobs.detach(), grad.clone()))
        kept_rows.append(kept)
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-5)
    num_tokens = len(pack[0].tokens_U)
    assert num_tokens > 100
    assert max(kept_rows[0]) == num_tokens, "at once, all logits wait for the backward pass"
    assert kept_rows[1] == [], "cut, none does"


def test_the_entropy_of_so_many_columns_is_exact_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, NUM_ROWS, generator=generator) * torch.tensor(
        [[0.0], [0.1], [1.0], [3.0], [8.0], [40.0]]
    )
    forbidden = [TOKEN_IDS[text] for text in VISION_PLACEHOLDERS]
    logits[:, forbidden] = -torch.inf
    exact = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    assert float(exact[0]) == pytest.approx(math.log(NUM_ROWS - len(forbidden)))
    assert (entropy_nats(logits.softmax(-1)).double() - exact).abs().max() < 1e-4
