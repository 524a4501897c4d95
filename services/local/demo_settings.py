"""Every number of the demo in one place: sizes, seeds, hyper-parameters, threads.

`DemoPlan` is what is measured; two demos of the same plan are the same experiment. It is written
into the journal, and a demo is only continued under the plan it was started with.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum


class Arm(StrEnum):
    """What is trained (METHOD.md, What the paper shows)."""

    MEDVR = "medvr"
    """The whole method: EVR and CCA."""
    ZOOM_ONLY = "zoom_only"
    """The paper's "+ zoom": no branching, and no reward for the tool."""


@dataclass(frozen=True)
class RolloutPlan:
    """How groups are made."""

    group_size: int = 16
    """M: trajectories per problem (METHOD.md, EVR)."""
    max_turns: int = 3
    max_turn_tokens: int = 96
    concurrency: int = 4
    """Groups in flight."""
    group_timeout_s: float = 120.0
    visibility_timeout_s: float = 30.0
    """After this a group whose worker was killed is rolled out again."""
    base_probability: float = 0.5
    """P_base."""
    entropy_gain: float = 0.5
    """γ."""


@dataclass(frozen=True)
class TrainerPlan:
    """How the policy is changed."""

    max_steps: int = 110
    groups_per_step: int = 8
    max_off_policy_steps: int = 4
    max_outstanding: int = 16
    lr: float = 3e-4
    lr_final_share: float = 0.1
    """Groups are few and rewards coarse: at a constant rate the last steps undo each other."""
    warmup_steps: int = 5
    kl_beta: float = 0.0
    """No term for the distance to the base: its forward passes are a quarter of a step."""
    pack_tokens: int = 16_384
    checkpoint_every: int = 1
    publish_every: int = 1
    threads: int = 1


@dataclass(frozen=True)
class DemoPlan:
    """One demo."""

    arms: tuple[Arm, ...] = (Arm.MEDVR,)
    seed: int = 0
    """Of training: feeder's order, sampling, torch."""
    num_train_problems: int = 1_000
    num_test_problems: int = 200
    """Of each test set."""
    test_sets: tuple[str, ...] = ("brain", "retina", "ct")
    """Brain is what is trained on (other phantoms); the others are out-of-domain."""
    rollout: RolloutPlan = RolloutPlan()
    trainer: TrainerPlan = TrainerPlan()
    evaluation_seed: int = 0
    evaluation_temperature: int = 1
    """1: the distribution that is trained. Greedy answers (0) hide most of what training changes:
    the base's most probable box is often right while most of its samples are not."""
    evaluation_concurrency: int = 32
    policy_max_num_seqs: int = 64
    policy_threads: int = 1

    @property
    def train_set(self) -> str:
        """Name of the training problem set."""
        return f"{self.test_sets[0]}-train"

    def run_of(self, arm: Arm) -> str:
        """The training run of an arm."""
        return f"demo-{arm.value.replace('_', '-')}"


def quick(plan: DemoPlan) -> DemoPlan:
    """The same demo so small that it only shows that everything works together."""
    return dataclasses.replace(
        plan,
        num_train_problems=40,
        num_test_problems=8,
        rollout=dataclasses.replace(plan.rollout, group_size=8),
        trainer=dataclasses.replace(
            plan.trainer, max_steps=3, groups_per_step=2, max_outstanding=6
        ),
    )
