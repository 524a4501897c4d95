"""Settings of an evaluation: which problems, which policy, how it samples, where it writes."""

from pathlib import Path

from pydantic import Field

from shared.service.settings import HttpUrl, ServiceSettings, settings_config


class EvaluationSettings(ServiceSettings):
    """Run the agent over a problem set, one trajectory each, and score it."""

    model_config = settings_config("evaluation")

    problem_set: Path
    """Folder of the problem set."""
    out: Path
    """Folder to write to; an interrupted evaluation found there is continued."""
    policy_url: HttpUrl = "http://127.0.0.1:8100"
    """Base URL of the policy server."""
    zoom_url: HttpUrl = "http://127.0.0.1:8120"
    """Base URL of the zoom service."""
    cca_url: HttpUrl = "http://127.0.0.1:8130"
    """Base URL of the cca service: the only place where answers are matched."""
    label: str = "evaluation"
    """Name of this evaluation in tables and plots, e.g. `before`."""
    temperature: int = Field(default=0, ge=0, le=1)
    """0: the most likely token each time; 1: sampled."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Problems that are worked on together."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many problems of the set; unset means all."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampling (at temperature 1) and of the bootstrap."""
    max_turns: int | None = Field(default=None, ge=1)
    """Turn budget; unset means the policy's own."""
    max_turn_tokens: int = Field(default=256, ge=1)
    """Tokens a turn may have."""
    patience_s: float = Field(default=180.0, ge=0)
    """How long a problem waits for a service that fails for a moment, in seconds."""
    gallery: int = Field(default=12, ge=0, le=64)
    """Examples drawn with their boxes; 0 draws none."""
    fresh: bool = False
    """Discard what an earlier evaluation left in the folder."""
