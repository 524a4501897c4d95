"""Settings of the rollout worker and of the feeder."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.rollout.branching import BranchingArm, BranchingSettings
from shared.api.cca import RewardSettings, ToolRewardArm
from shared.clients.replicas import ServiceUrls
from shared.service.settings import RedisUrl, ServiceSettings, settings_config

RUN_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


class RolloutSettings(ServiceSettings):
    """Celery worker: rolls problems out into scored trajectory groups."""

    model_config = settings_config("rollout")

    run: str = Field(default="default", pattern=RUN_PATTERN)
    """Name of the training run; its queue and its stream carry it."""
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Celery broker and the run's stream."""
    policy_url: ServiceUrls = "http://127.0.0.1:8100"
    """Base URLs of the policy's replicas, separated by commas; `dns+http://name:port` names all."""
    zoom_url: ServiceUrls = "http://127.0.0.1:8120"
    """Base URLs of zoom's replicas."""
    cca_url: ServiceUrls = "http://127.0.0.1:8130"
    """Base URLs of the CCA scorer's replicas."""
    probe_host: str = "127.0.0.1"
    """Address of /health, /ready and /metrics."""
    probe_port: int = Field(default=8140, ge=1, le=65535)
    """Port of /health, /ready and /metrics."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Groups rolled out at a time by this process."""

    max_turns: int | None = Field(default=None, ge=1)
    """Turns per trajectory; unset means the policy's own limit."""
    max_turn_tokens: int = Field(default=512, ge=16)
    """Tokens per turn."""
    branching: Literal["evr", "random", "off"] = "evr"
    """evr, random (γ = 0) or off (independent trajectories)."""
    group_size: int = Field(default=16, ge=2, le=256)
    """M: trajectories per problem."""
    base_probability: float = Field(default=0.5, ge=0, le=1)
    """P_base: fork probability where the entropy did not rise."""
    entropy_gain: float = Field(default=0.5, ge=0)
    """γ: how much a nat of entropy increase adds to the fork probability."""
    entropy_increase_threshold_nats: float = 0.0
    """Calls at or below this increase are no candidates (γ = 0 switches it off)."""
    reward_arm: Literal["cca", "gated", "unconditional", "none"] = "cca"
    """Tool reward: cca, gated, unconditional or none."""
    iou_threshold: float = Field(default=0.5, ge=0, le=1)
    """η: IoU with the consensus above which the tool reward is 1."""
    no_zoom_tool_reward: float = Field(default=0.0, ge=0, le=1)
    """Tool reward of a correct trajectory that never zoomed (the paper's words give 0.5)."""
    format_penalty: float = Field(default=-0.2, le=0)
    """Added for a trajectory that is not well formed."""

    group_timeout_s: float = Field(default=300, gt=0)
    """Longest that one attempt at a group may take."""
    max_attempts: int = Field(default=8, ge=1)
    """Attempts at a group before it is buried, when what fails is transient."""
    first_backoff_s: float = Field(default=0.5, gt=0)
    """Pause after the first failed attempt; doubles each time."""
    longest_backoff_s: float = Field(default=30, gt=0)
    """Longest pause between attempts."""
    max_deliveries: int = Field(default=5, ge=1)
    """Deliveries of a task that took its worker down with it before the group is buried."""
    visibility_timeout_s: float = Field(default=30, ge=1)
    """After this without a sign of life from its worker a task is delivered again."""

    def branching_settings(self) -> BranchingSettings:
        """METHOD.md, EVR."""
        return BranchingSettings(
            arm=BranchingArm(self.branching),
            group_size=self.group_size,
            base_probability=self.base_probability,
            entropy_gain=self.entropy_gain,
            entropy_increase_threshold_nats=self.entropy_increase_threshold_nats,
        )

    def reward_settings(self) -> RewardSettings:
        """METHOD.md, Reward and CCA; sent with every score request."""
        return RewardSettings(
            arm=ToolRewardArm(self.reward_arm),
            iou_threshold=self.iou_threshold,
            no_zoom_tool_reward=self.no_zoom_tool_reward,
            format_penalty=self.format_penalty,
        )


class FeederSettings(ServiceSettings):
    """Feeder: hands the problems of a set to the rollout workers, round after round."""

    model_config = settings_config("feeder")

    run: str = Field(default="default", pattern=RUN_PATTERN)
    """Name of the training run."""
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Celery broker and the run's state."""
    problem_set: Path = Path(".medvr/problems")
    """Folder of the problem set."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of problems."""
    max_outstanding: int = Field(default=32, ge=1)
    """Groups that may be without a fate at a time; the trainer's setting must be the same."""
    max_groups: int | None = Field(default=None, ge=1)
    """Groups to hand out in all; unset means until the run is finished."""
    poll_interval_s: float = Field(default=0.2, gt=0)
    """Seconds between two looks at the run."""
    probe_host: str = "127.0.0.1"
    """Address of /health, /ready and /metrics."""
    probe_port: int = Field(default=8141, ge=1, le=65535)
    """Port of /health, /ready and /metrics."""
