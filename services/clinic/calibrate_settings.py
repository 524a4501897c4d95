"""Settings of `medvr clinic calibrate`: which problems, which services, what to fit with."""

from pathlib import Path

from pydantic import Field

from shared.api.clinic import MAX_TRAJECTORIES
from shared.clients.replicas import ServiceUrls
from shared.service.settings import ServiceSettings, settings_config

_CONFIG = settings_config("calibrate")
_CONFIG["cli_prog_name"] = "medvr clinic calibrate"


class CalibrateSettings(ServiceSettings):
    """Fit the probability that an answer is right, on a problem set, with the running services."""

    model_config = _CONFIG

    problems: Path
    """Folder of the problem set. Take one the policy was not trained on."""
    out: Path = Path(".medvr/calibration")
    """Folder to write to; an interrupted calibration found there is continued."""
    policy_url: ServiceUrls = "http://127.0.0.1:8100"
    """Base URLs of the policy's replicas, separated by commas; `dns+http://name:port` names all."""
    zoom_url: ServiceUrls = "http://127.0.0.1:8120"
    """Base URLs of zoom's replicas."""
    cca_url: ServiceUrls = "http://127.0.0.1:8130"
    """Base URLs of the CCA scorer's replicas."""
    blob_url: str = ".medvr/blobs"
    """Root of the blob store that zoom writes to: a folder or an fsspec URL."""
    k: int = Field(default=5, ge=1, le=MAX_TRAJECTORIES)
    """Trajectories per problem: a calibration holds for one K."""
    max_turn_tokens: int = Field(default=512, ge=1, le=16_384)
    """Tokens the policy may write in one turn, as in the clinic's settings."""
    held_out: float = Field(default=0.4, gt=0.0, lt=1.0)
    """Share of the images that is kept back to measure the calibration on."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many problems of the set; unset means all."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampling and of the split."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Problems that are worked on together."""
    patience_s: float = Field(default=180.0, ge=0)
    """How long a problem waits for a service that fails for a moment, in seconds."""
    fresh: bool = False
    """Discard what an earlier calibration left in the folder."""
