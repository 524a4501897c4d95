"""A policy whose weights are sharded, though over one process alone: the numbers of bfloat16."""

from pathlib import Path

import pytest
import torch

from services.trainer.assembly import build_learner
from services.trainer.figures import StepFigures
from services.trainer.images import ImageSource
from services.trainer.sample import build_group
from services.trainer.settings import TrainerSettings
from services.trainer.world import World, open_world
from shared.blobs import BlobStore
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import run_settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_step_in_bfloat16_is_that_of_one_process(
    tmp_path: Path, checkpoint: Path, blob_url: str, builder: GroupBuilder, lora_rank: int
) -> None:
    settings = run_settings(
        tmp_path,
        checkpoint=checkpoint,
        blob_url=blob_url,
        redis_url="redis://unused",
        dtype="bfloat16",
        lora_rank=lora_rank,
        kl_beta=0.01,
    )
    plain = step(settings, World(CPU), checkpoint, blob_url, builder)
    exact = step(
        settings.model_copy(update={"dtype": "float32"}), World(CPU), checkpoint, blob_url, builder
    )
    with open_world("cpu", always_sharded=True) as world:
        sharded = step(settings, world, checkpoint, blob_url, builder)
    assert sharded.grad_norm == pytest.approx(plain.grad_norm, rel=0.02)
    assert sharded.grad_norm == pytest.approx(exact.grad_norm, rel=0.02)
    assert sharded.logprob_difference == pytest.approx(exact.logprob_difference, rel=0.01)


def step(
    settings: TrainerSettings, world: World, checkpoint: Path, blob_url: str, builder: GroupBuilder
) -> StepFigures:
    images = ImageSource(BlobStore(blob_url), checkpoint)
    learner = build_learner(settings, checkpoint, images, world)
    groups = [build_group(builder.group(s), learner.policy.limits, divide=True) for s in (1, 2)]
    images.hold(span for g in groups for sample in g.samples for span in sample.images)
    figures = learner.take_step([g.samples for g in groups])
    if world.mesh is not None:  # a reference gives back what it gathered
        assert learner.reference is not None
        assert {type(p).__name__ for p in learner.reference.parameters()} == {"DTensor"}
    return figures
