"""The base of every wire model."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Frozen; an unknown field is an error, because it is usually a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SHA256_PATTERN = r"^[0-9a-f]{64}$"
