"""The losses against TRL's own, computed by it here and now on random inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.trl_step import Inputs, make_trainer
from services.trainer.loss import (
    ClipRange,
    Loss,
    Objective,
    TokenLoss,
    token_loss,
    token_weights,
)

CAP, BETA, MOST_TOKENS = 2.0, 0.1, 16
SETTINGS: dict[Loss, dict[str, Any]] = {
    Loss.GRPO: {"loss_type": "grpo"},
    Loss.DR_GRPO: {"loss_type": "dr_grpo"},
    Loss.DAPO: {"loss_type": "dapo"},
    Loss.GSPO: {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}
LENGTHS = (7, 2, 5, 1)


def trl_trainer(checkpoint: Path, folder: Path, loss: Loss) -> Any:
    """As after an update: π_old, μ and π_ref are in the inputs, no engine and no reference runs.

    TRL's default multiplies the KL by π_θ/π_old; METHOD.md's KL is the plain one.
    """
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    trainer = make_trainer(
        folder,
        checkpoint,
        model,
        per_device_train_batch_size=len(LENGTHS),
        num_generations=len(LENGTHS),
        max_completion_length=MOST_TOKENS,
        use_bias_correction_kl=False,
        **SETTINGS[loss],
    )
    trainer.use_vllm, trainer.beta = True, BETA
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def random_inputs(trainer: Any, seed: int) -> tuple[Inputs, torch.Tensor]:
    """A batch as TRL has it and μ; about a third of what was written is a tool's."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = len(LENGTHS), max(LENGTHS)
    completion_BC = torch.arange(columns) < torch.tensor(LENGTHS)[:, None]
    tool_BC = torch.rand(rows, columns, generator=random) < 2 / 3
    tool_BC[:, 0] = True  # each wrote something
    inputs: Inputs = {
        "prompt_ids": torch.randint(0, 700, (rows, 4), generator=random),
        "prompt_mask": torch.ones(rows, 4, dtype=torch.long),
        "completion_ids": torch.randint(0, 700, (rows, columns), generator=random),
        "completion_mask": completion_BC.long(),
        "tool_mask": tool_BC.long(),
        "advantages": torch.randn(rows, generator=random),
        "num_items_in_batch": (completion_BC & tool_BC).sum(),
    }

    def near(logprobs_BC: torch.Tensor, by: float) -> torch.Tensor:
        return logprobs_BC + by * (2 * torch.rand(rows, columns, generator=random) - 1)

    theta_BC = trained_logprobs(trainer, inputs).detach()
    old_BC = near(theta_BC, 0.5)
    mu_BC = near(old_BC, 1.2)
    inputs["old_per_token_logps"] = old_BC
    inputs["ref_per_token_logps"] = near(theta_BC, 1.0)
    inputs["importance_sampling_ratio"] = torch.exp(old_BC - mu_BC).clamp(max=CAP)
    return inputs, mu_BC


def trained_logprobs(trainer: Any, inputs: Inputs) -> torch.Tensor:
    logprobs_BC, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        inputs["completion_ids"].size(1),
    )
    return logprobs_BC


def our_loss(
    trainer: Any, inputs: Inputs, mu_BC: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor, TokenLoss]:
    """And the terms it is the sum of."""
    trained_BC = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    counts = trained_BC.sum(dim=1)
    trajectory_N = torch.arange(len(counts)).repeat_interleave(counts)
    weights = torch.tensor(token_weights(counts.tolist(), loss, constant=MOST_TOKENS))
    terms = token_loss(
        trained_logprobs(trainer, inputs)[trained_BC],
        old_logprobs_N=inputs["old_per_token_logps"][trained_BC],
        sampled_logprobs_N=mu_BC[trained_BC],
        ref_logprobs_N=inputs["ref_per_token_logps"][trained_BC],
        advantages_N=inputs["advantages"][trajectory_N],
        trajectory_N=trajectory_N,
        objective=Objective(loss, ClipRange(0.2, 0.28), CAP, float("inf"), BETA),
    )
    return (terms.loss_N * weights[trajectory_N]).sum(), terms


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("loss", list(Loss))
def test_loss_and_gradient_are_those_that_trl_computes(
    loss: Loss, checkpoint: Path, tmp_path: Path
) -> None:
    """But GSPO's gradient: TRL gives each token the mean c of its trajectory, ours its own c."""
    trainer = trl_trainer(checkpoint, tmp_path, loss)
    num_clipped = num_capped = 0
    for seed in range(5):
        inputs, mu_BC = random_inputs(trainer, seed)
        ours, terms = our_loss(trainer, inputs, mu_BC, loss)
        num_clipped += int(terms.is_clipped_N.sum())
        num_capped += int(terms.is_capped_N.sum())
        theirs = trainer.compute_loss(trainer.model, inputs)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
        if loss is not Loss.GSPO:
            expected = gradient(trainer, theirs)
            assert (gradient(trainer, ours) - expected).norm() < 1e-5 * expected.norm()
    assert num_clipped > 0
    assert num_capped > 0
