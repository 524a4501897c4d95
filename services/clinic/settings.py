"""Settings of the clinic: where its neighbours are, what it keeps, how much it accepts."""

from pathlib import Path

from pydantic import Field

from shared.api.clinic import MAX_TRAJECTORIES
from shared.service.settings import HttpUrl, ServiceSettings, settings_config


class ClinicSettings(ServiceSettings):
    """Serve the clinic: a case API and its viewer. Research use only. Not a medical device."""

    model_config = settings_config("clinic")

    host: str = "127.0.0.1"
    """Address to listen on. There is no login: put it behind a gateway that has one."""
    port: int = Field(default=8080, ge=1, le=65535)
    """Port to listen on."""
    policy_url: HttpUrl = "http://127.0.0.1:8100"
    """Base URL of the policy server."""
    zoom_url: HttpUrl = "http://127.0.0.1:8120"
    """Base URL of the zoom service."""
    cca_url: HttpUrl = "http://127.0.0.1:8130"
    """Base URL of the CCA scorer."""
    blob_url: str = ".medvr/blobs"
    """Root of the blob store that zoom writes to: a folder or an fsspec URL."""
    database: Path = Path(".medvr/clinic.sqlite")
    """SQLite file of the cases; made if absent, readable by its owner only. One clinic per file."""
    default_k: int = Field(default=5, ge=1, le=MAX_TRAJECTORIES)
    """Trajectories per case where the request does not say."""
    max_upload_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest image file accepted, in bytes."""
    max_question_chars: int = Field(default=2000, ge=1)
    """Longest question, in characters."""
    max_choice_chars: int = Field(default=500, ge=1)
    """Longest choice, in characters."""
    max_turn_tokens: int = Field(default=512, ge=1, le=16_384)
    """Tokens the policy may write in one turn."""
    max_concurrent_cases: int = Field(default=4, ge=1)
    """Cases worked on together; further ones wait their turn."""
    case_timeout_s: float = Field(default=600.0, gt=0)
    """A case that takes longer, waiting not counted, fails."""
