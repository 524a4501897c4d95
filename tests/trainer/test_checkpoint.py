"""Checkpoints are whole or absent; versions are never reused."""

import json
from pathlib import Path

import msgspec
import pytest
import redis
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from services.trainer.checkpoint import (
    CheckpointStore,
    Progress,
    Trained,
    fingerprint,
    read_state,
    refuse_other_settings,
    write_state,
)
from services.trainer.model import Policy
from services.trainer.publish import Publisher
from services.trainer.transfer import FilesOnly
from services.trainer.world import World
from shared.errors import WeightsError
from shared.stream import Fate
from shared.weights import (
    DEFAULT_MANIFEST,
    ChannelPointer,
    channel_key,
    decode_pointer,
    verify_version,
)

CPU = torch.device("cpu")
ALL = Trained(base="x", freeze_vision=False, lora_rank=0, lora_alpha=0)


def progress(step: int) -> Progress:
    return Progress(
        run="r", step=step, cursor=3 * step, fates={f"g{step}": Fate.TRAINED}, trained=ALL
    )


def save(store: CheckpointStore, step: int, value: float, num: int = 2) -> Path:
    state = {"x": torch.full((num,), value)}
    write_state(store.begin(step), state, World(CPU)).result()
    return store.commit(progress(step))


def load(folder: Path, num: int = 2) -> torch.Tensor:
    state = {"x": torch.empty(num)}
    read_state(folder, state, World(CPU))
    return state["x"]


def test_the_newest_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(store, step, float(step))
    found = CheckpointStore(tmp_path, keep=2).newest()
    assert found is not None
    assert (found[0].step, found[0].cursor, found[0].fates) == (3, 9, {"g3": Fate.TRAINED})
    assert torch.equal(load(found[1]), torch.tensor([3.0, 3.0]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002", "000003"]


def test_a_write_that_was_cut_off_is_cleared_away(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 0.0)
    (tmp_path / ".partial-000002").mkdir()
    (tmp_path / ".partial-000002" / "__0_0.distcp").write_bytes(b"half")
    again = CheckpointStore(tmp_path, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["000001"]
    save(again, 2, 0.0)
    found = again.newest()
    assert found is not None
    assert found[0].step == 2


@pytest.mark.parametrize("damage", ["truncated state", "no progress", "no state"])
def test_a_damaged_checkpoint_is_passed_over_and_written_anew(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1, 0.0, num=100)
    newest = save(store, 2, 0.0, num=100)
    if damage == "truncated state":
        with (newest / "__0_0.distcp").open("r+b") as file:
            file.truncate(100)
    elif damage == "no progress":
        (newest / "progress.json").unlink()
    else:
        (newest / "__0_0.distcp").unlink()
    found = store.newest()
    assert found is not None
    assert found[0].step == 1
    save(store, 2, 1.0)
    found = store.newest()
    assert found is not None
    assert torch.equal(load(found[1]), torch.ones(2))


def test_what_is_saved_is_what_it_was_when_saving_began(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    state = {"x": torch.zeros(1_000_000)}
    writing = write_state(store.begin(1), state, World(CPU))
    state["x"].add_(1.0)
    writing.result()
    assert not load(store.commit(progress(1)), 1_000_000).any()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = save(CheckpointStore(tmp_path, keep=1), 1, 0.0)
    with pytest.raises(WeightsError, match="does not fit what these settings train"):
        read_state(folder, {"y": torch.empty(2)}, World(CPU))


def test_what_another_rank_wrote_elsewhere_makes_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    partial = store.begin(1)
    write_state(partial, {"x": torch.zeros(2)}, World(CPU)).result()
    (partial / "__0_0.distcp").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=r"lacks __0_0\.distcp.*storage that all ranks share"):
        store.commit(progress(1))
    assert store.newest() is None


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"freeze_vision": True}, "with freeze_vision True, it had False"),
        ({"lora_rank": 8, "lora_alpha": 16}, "with lora_rank 8, it had 0"),
        ({"base": "y"}, "with another base model"),
    ],
)
def test_a_run_that_would_train_something_else_is_refused(
    now: dict[str, object], message: str
) -> None:
    """What is not trained is not in its checkpoints: it would be silently taken from the base."""
    refuse_other_settings(progress(1), ALL)
    with pytest.raises(WeightsError, match=message):
        refuse_other_settings(progress(1), msgspec.structs.replace(ALL, **now))


def test_a_fingerprint_tells_other_weights_of_the_same_shape(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "model.safetensors"
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    other.write_bytes(content)
    assert fingerprint(tmp_path) == fingerprint(checkpoint)
    content[-1] ^= 1
    other.write_bytes(content)
    assert fingerprint(tmp_path) != fingerprint(checkpoint)


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "new", keep=1).newest() is None


@pytest.fixture
def policy(checkpoint: Path) -> Policy:
    return Policy.load(checkpoint, CPU)


def publish(publisher: Publisher, policy: Policy, version: int) -> ChannelPointer:
    weights = {name: w.clone() for name, w in policy.exported(publisher.dtype)}
    return publisher.write(weights, version)


def publisher(client: redis.Redis, base: Path, root: Path, keep: int = 4) -> Publisher:
    return Publisher(
        client,
        base=base,
        root=root,
        run="r",
        channel="policy:train",
        keep=keep,
        transfer=FilesOnly(),
    )


def test_a_version_is_an_ordinary_checkpoint_and_the_channel_names_it(
    valkey: redis.Redis, checkpoint: Path, tmp_path: Path, policy: Policy
) -> None:
    (checkpoint / "medvr.json").write_bytes(msgspec.json.encode(DEFAULT_MANIFEST))
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.add_(1.0)
    publishing = publisher(valkey, checkpoint, tmp_path)
    pointer = publish(publishing, policy, 7)
    publishing.announce()
    assert valkey.get(channel_key("policy:train")) is None
    publishing.release(pointer, send=True)
    publishing.announce()
    folder = Path(pointer.path)
    assert folder == tmp_path / "r" / "000007"
    assert (verify_version(folder).run, verify_version(folder).version) == ("r", 7)
    value = valkey.get(channel_key("policy:train"))
    assert isinstance(value, bytes)
    assert decode_pointer(value) == pointer
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    ours = policy.model.state_dict()
    theirs = model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoTokenizer.from_pretrained(folder).encode(
        "<answer>A"
    ) == AutoTokenizer.from_pretrained(checkpoint).encode("<answer>A")
    for name in ("config.json", "preprocessor_config.json", "chat_template.jinja", "medvr.json"):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_bfloat16_base_is_published_in_bfloat16(
    valkey: redis.Redis, checkpoint: Path, tmp_path: Path, policy: Policy
) -> None:
    base = tmp_path / "half"
    base.mkdir()
    for path in checkpoint.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))
    pointer = publish(publisher(valkey, base, tmp_path / "w"), policy, 1)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(pointer.path, dtype="auto")
    assert model.dtype is torch.bfloat16


def test_publishing_the_same_weights_again_is_free_and_other_weights_are_refused(
    valkey: redis.Redis, checkpoint: Path, tmp_path: Path, policy: Policy
) -> None:
    publishing = publisher(valkey, checkpoint, tmp_path)
    first = publish(publishing, policy, 1)
    written = (Path(first.path) / "model.safetensors").stat().st_mtime_ns
    assert publish(publishing, policy, 1) == first
    assert (Path(first.path) / "model.safetensors").stat().st_mtime_ns == written
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.add_(1.0)
    with pytest.raises(WeightsError, match="holds other weights than step 1"):
        publish(publishing, policy, 1)


def test_only_the_newest_versions_are_kept(
    valkey: redis.Redis, checkpoint: Path, tmp_path: Path, policy: Policy
) -> None:
    publishing = publisher(valkey, checkpoint, tmp_path, keep=2)
    for version in (0, 1, 2):
        publish(publishing, policy, version)
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["000001", "000002"]


def test_a_run_behind_its_published_versions_is_refused(
    valkey: redis.Redis, checkpoint: Path, tmp_path: Path, policy: Policy
) -> None:
    publish(publisher(valkey, checkpoint, tmp_path), policy, 3)
    again = publisher(valkey, checkpoint, tmp_path)
    again.refuse_reuse(3)
    with pytest.raises(WeightsError, match="published version 3, but its newest checkpoint is"):
        again.refuse_reuse(2)
