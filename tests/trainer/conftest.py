"""A tiny checkpoint, a blob store and a builder of groups; made once, read by all tests here."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from shared.blobs import BlobStore
from tests.trainer.groups import GroupBuilder, make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from a second thread, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "base"
    make_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def blob_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def builder(checkpoint: Path, blob_url: str) -> GroupBuilder:
    return GroupBuilder(AutoTokenizer.from_pretrained(checkpoint), BlobStore(blob_url))
