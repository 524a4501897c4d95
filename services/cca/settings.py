"""Settings of the CCA scorer. How rewards are made is part of each request, not of these."""

from pydantic import Field

from shared.service.settings import ServiceSettings, settings_config


class CcaSettings(ServiceSettings):
    """Rewards of a group, consensus at inference."""

    model_config = settings_config("cca")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8130, ge=1, le=65535)
    """Port to listen on."""
    max_body_bytes: int = Field(default=8 * 2**20, ge=1)
    """Largest request that is read."""
    max_grid_cells: int = Field(default=16_000_000, ge=1)
    """Most cells of the grid that the boxes of one request span."""
