"""The digest by which weights are told apart, wherever they lie."""

import shutil
from pathlib import Path

from services.policy.weights import first_weights
from shared.weights import publish_version, weights_sha256

TRAINED = Path(__file__).parents[2] / "services" / "trainer" / "tiny" / "trained"


def test_published_and_shipped_copies_of_the_same_weights_have_one_digest(tmp_path: Path):
    staging = tmp_path / "staging"
    shutil.copytree(TRAINED, staging)
    pointer = publish_version(staging, tmp_path / "weights", "run", 3)

    published = first_weights(pointer.path)

    assert (published.run, published.version) == ("run", 3)
    assert published.sha256 == first_weights(str(TRAINED)).sha256 == weights_sha256(TRAINED)


def test_one_other_byte_is_another_digest_and_another_description_is_not(tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(TRAINED, copy)
    (copy / "medvr.json").unlink()
    assert weights_sha256(copy) == weights_sha256(TRAINED)

    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_sha256(copy) != weights_sha256(TRAINED)


def test_a_folder_without_weights_has_none(tmp_path: Path):
    assert weights_sha256(tmp_path) is None
    assert weights_sha256(Path("somebody/some-model")) is None
