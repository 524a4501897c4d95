"""The base of every wire model."""

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """Frozen; an unknown field is an error, because it is usually a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Sha256 = str
"""Hex digest; validated by the pattern on the field that carries it."""

SHA256_PATTERN = r"^[0-9a-f]{64}$"
