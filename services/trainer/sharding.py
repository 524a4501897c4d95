# pyright: basic
"""FSDP2 over a policy: weights, gradients and optimizer state are spread over all ranks.

Each block of the text model and of the vision tower is gathered when it is needed; what is left
(embedding, head, norms, merger) belongs to the policy as a whole. Two of the policy's methods are
forward passes of their own: images are encoded once for many packs of tokens. Gradients are added
up over the ranks, not averaged: a token's weight was counted over the whole optimizer batch.
"""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from services.trainer.model import Policy


def shard(policy: Policy, mesh: DeviceMesh, *, dtype: torch.dtype, cpu_offload: bool) -> None:
    """Shard a policy in place; `dtype` is what blocks are gathered in and computed with.

    With `cpu_offload` the shards, their gradients and the optimizer state stay in host memory.
    """
    precision = MixedPrecisionPolicy()
    if dtype is not torch.float32:
        # Autocast casts what blocks are given; rotations must stay as exact as in one process.
        precision = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    offload = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    model = policy.model.model
    for module in (*model.visual.blocks, *model.language_model.layers, policy):
        # By itself FSDP keeps a root until the backward pass, which a reference never has.
        reshard = True if module is policy and policy.is_frozen else None
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=precision,
            offload_policy=offload,
            reshard_after_forward=reshard,
        )
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)  # gloo has no other
    register_fsdp_forward_method(policy, "image_features")
    register_fsdp_forward_method(policy, "trained_logprobs")
