"""Settings of the zoom service."""

from pydantic import Field

from shared.service.settings import ServiceSettings, settings_config


class ZoomSettings(ServiceSettings):
    """Images in, crops out."""

    model_config = settings_config("zoom")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8120, ge=1, le=65535)
    """Port to listen on."""
    blob_url: str = ".medvr/blobs"
    """Root of the blob store for originals and crops: a folder or an fsspec URL."""
    max_upload_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest file that is taken in."""
    max_pixels: int = Field(default=64_000_000, ge=1)
    """Most pixels (rows × columns) of an original or a shown crop; checked before decoding."""
    max_blank_pixels: int = Field(default=4_000_000, ge=1)
    """Most pixels (rows × columns) that a region to be blanked may span; 33 bytes each."""
    cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """Memory for decoded originals; the least recently used go first."""
    cache_crops: int = Field(default=4096, ge=0)
    """How many answers to crop requests are remembered."""
    workers: int = Field(default=4, ge=1)
    """Threads that resize and read blobs."""
    max_decoders: int = Field(default=2, ge=1)
    """Decoder processes at a time; each may use `decode_memory_bytes`."""
    decode_memory_bytes: int = Field(default=1024 * 2**20, ge=64 * 2**20)
    """Memory one decoder process may use beyond its libraries."""
    decode_timeout_s: float = Field(default=30.0, gt=0)
    """Time one decoder process may take."""
