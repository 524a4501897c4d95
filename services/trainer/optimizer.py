# pyright: basic
"""AdamW in float32 with a linear warm-up, a linear decay and gradient clipping."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from shared.errors import MedvrError


class GradientError(MedvrError):
    """The gradient is not finite; stepping would destroy the weights."""


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, max_steps: int, final_share: float
) -> float:
    """Rate of optimizer step `step` (from 0): peak · min(1, (step + 1) / warmup) · decay.

    The decay is linear in the step, from 1 to `final_share` at `max_steps`; 1 is none. A function
    of the step alone, so that a resumed run needs no scheduler state.
    """
    rise = 1.0 if warmup_steps == 0 else min(1.0, (step + 1) / warmup_steps)
    return peak * rise * (1.0 - (1.0 - final_share) * step / max_steps)


def build_optimizer(module: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; vectors (norms, biases) are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def apply_gradient(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, lr: float, max_norm: float
) -> float:
    """Clip to `max_norm`, update, clear; returns the 2-norm before clipping, over all ranks.

    Raises `GradientError` without touching the weights if the gradient is not finite.
    """
    total = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
    if not torch.isfinite(torch.tensor(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise GradientError(f"gradient norm is {norm}: the step was not taken")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
