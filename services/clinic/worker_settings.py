"""Settings of the clinic's worker."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.service.settings import HttpUrl, RedisUrl, ServiceSettings, settings_config


class ClinicWorkerSettings(ServiceSettings):
    """Work on the items of the clinic's jobs."""

    # Not CLINIC_WORKER_: the clinic would take such a variable for a misspelt one of its own.
    model_config = SettingsConfigDict(
        settings_config("clinicworker"), cli_prog_name="medvr clinic-worker"
    )

    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Redis with the clinic's queue."""
    clinic_url: HttpUrl = "http://127.0.0.1:8080"
    """The clinic, which works the cases."""
    concurrency: int = Field(default=2, ge=1, le=64)
    """Items worked on together; fewer than the clinic's cases, or nobody else gets a turn."""
    visibility_timeout_s: float = Field(default=30.0, ge=1)
    """After so many seconds an item whose worker was killed is delivered again."""
    probe_host: str = "127.0.0.1"
    """Address of /health, /ready and /metrics."""
    probe_port: int = Field(default=8141, ge=1, le=65535)
    """Port of them."""
