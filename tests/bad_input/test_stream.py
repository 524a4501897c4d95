"""The stream: an entry that cannot be trained is dead with its reason, whole, and training goes on.

One trainer reads all rows; after each of them it must still train a group that is in order.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from shared.blobs import BlobStore, sha256_hex
from shared.stream import Fate, RunStream
from shared.trajectory import MAX_GROUP_BYTES, TrajectoryGroup, encode_group
from tests.processes import ROOT, environment
from tests.trainer.groups import GroupBuilder, make_checkpoint
from tests.trainer.runs import flags, run_settings
from tests.zoom.files import png_claiming

TIMEOUT_S = 240.0
Spoil = Callable[[dict[str, Any]], object]
"""Makes a good group, as plain values, into what is sent: bytes as they are, else msgpack."""


def halved(group: dict[str, Any]) -> bytes:
    whole = msgspec.msgpack.encode(group)
    return whole[: len(whole) // 2]


def changed(**members: object) -> Spoil:
    return lambda group: {**group, **members}


def without(member: str) -> Spoil:
    return lambda group: {k: v for k, v in group.items() if k != member}


def trajectory(**members: object) -> Spoil:
    """The first trajectory with other members."""

    def spoil(group: dict[str, Any]) -> object:
        first, *others = group["trajectories"]
        return {**group, "trajectories": [{**first, **members}, *others]}

    return spoil


def generation(name: str, change: Callable[[list[Any]], object]) -> Spoil:
    """A list of the first generation, changed."""

    def spoil(group: dict[str, Any]) -> object:
        turn = group["trajectories"][0]["turns"][0]
        turn["generation"][name] = change(turn["generation"][name])
        return group

    return spoil


def shown(**members: object) -> Spoil:
    """The image of the prompt with other members."""

    def spoil(group: dict[str, Any]) -> object:
        for span in group["prompt"]:
            if span["type"] == "image":
                span.update(members)
        return group

    return spoil


def constantly(payload: bytes) -> Spoil:
    return lambda _: payload


TEXT = b"no image at all"
BOMB = png_claiming(100_016, 100_016)
NO_GROUP = "not a trajectory group"
CASES: dict[str, tuple[Spoil, str]] = {
    "nothing": (constantly(b""), f"{NO_GROUP}: Input data was truncated"),
    "a text": (constantly(b"hello"), f"{NO_GROUP}: Expected `object`"),
    "a list": (constantly(b"\x90"), f"{NO_GROUP}: Expected `object`, got `array`"),
    "a group cut in half": (halved, f"{NO_GROUP}: Input data was truncated"),
    "a length beyond the payload": (constantly(b"\x81\xa1x\xdb\xff\xff\xff\xff"), "truncated"),
    "lists in lists in an unknown field": (
        constantly(b"\x81\xa1x" + b"\x91" * 200_000 + b"\x90"),
        f"{NO_GROUP}: maximum recursion depth exceeded",
    ),
    "a name that is no UTF-8": (constantly(b"\x81\xa8group_id\xa2\xff\xfe"), "utf-8"),
    "more bytes than are read": (
        changed(arm="x" * MAX_GROUP_BYTES),
        f"groups of at most {MAX_GROUP_BYTES} are read",
    ),
    "no version": (without("schema_version"), "missing required field `schema_version`"),
    "a later version": (changed(schema_version=2), "schema_version 2, this trainer reads 1"),
    "a version that is a word": (changed(schema_version="one"), "Expected `int`, got `str`"),
    "no run": (without("run"), "missing required field `run`"),
    "another run": (changed(run="another"), "is of run another, this is run run"),
    "another group": (changed(group_id="run:0:other"), "carries group run:0:other"),
    "no trajectory": (changed(trajectories=[]), "has no trajectories"),
    "a trajectory without a turn": (trajectory(turns=[]), "no turns"),
    "a trajectory without a reward": (trajectory(reward=None), "not scored"),
    "an end that nobody knows": (trajectory(stop_reason="tired"), "Invalid enum value 'tired'"),
    "tokens that are words": (generation("token_ids", lambda _: ["a"]), "Expected `int`"),
    "fewer texts than tokens": (
        generation("token_texts", lambda texts: texts[:-1]),
        "token_texts covers",
    ),
    "a logprob that is no number": (
        generation("sampled_logprobs", lambda values: [float("nan"), *values[1:]]),
        "a sampled logprob is not finite",
    ),
    "an entropy that is no number": (
        generation("entropies_nats", lambda values: [float("nan"), *values[1:]]),
        "an entropy is not finite",
    ),
    "versions of a negative number of tokens": (
        generation("version_spans", lambda spans: [*spans, [0, 5], [0, -5]]),
        "version_spans hold a negative number",
    ),
    "a token outside the vocabulary": (
        generation("token_ids", lambda ids: [10**6, *ids[1:]]),
        "a token id is outside the vocabulary",
    ),
    "an image that is nowhere": (shown(image="0" * 64), f"no blob {'0' * 64}"),
    "more image than placeholders": (
        shown(size={"width_px": 84, "height_px": 84}),
        "4 placeholders for an image of 9 tokens",
    ),
    "an image of another shape": (
        shown(size={"width_px": 112, "height_px": 28}),
        "is 56x56 px, its span says 112x28",
    ),
    "an image that is a text": (shown(image=sha256_hex(TEXT)), "cannot be decoded"),
    "an image that claims ten gigapixels": (shown(image=sha256_hex(BOMB)), "decompression bomb"),
    "an image of odd sides": (
        shown(size={"width_px": 100, "height_px": 84}),
        "sides must be multiples of 28",
    ),
}


@dataclass
class Run:
    """A trainer at work, and its run."""

    process: "subprocess.Popen[bytes]"
    stream: RunStream
    builder: GroupBuilder
    log: Path
    num_groups: int = 0
    expected: dict[str, Fate] = field(default_factory=dict[str, Fate])

    def next_group(self) -> TrajectoryGroup:
        """A good group that was never sent."""
        self.num_groups += 1
        return self.builder.group(self.num_groups)

    def feed(self, group_id: str, payload: bytes) -> None:
        """What feeder and worker do."""
        assert self.stream.mark_fed(group_id, self.stream.cursor())
        assert self.stream.append(group_id, payload)

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def last_letter(self) -> dict[bytes, bytes]:
        """The newest dead letter."""
        ((_, letter),) = self.stream.client.xrevrange(self.stream.dead_key, count=1)
        return letter

    def assert_alive(self) -> None:
        """A group in order is trained, and every fed group has its one fate."""
        group = self.next_group()
        self.feed(group.group_id, encode_group(group))
        self.expected[group.group_id] = Fate.TRAINED
        self.wait_for(lambda: group.group_id in self.stream.fates())
        assert self.stream.fates() == self.expected
        assert self.stream.cursor() == len(self.expected)
        assert (self.stream.outstanding(), self.stream.length()) == (0, 0)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, _valkey_server: str, free_port: Callable[[], int]
) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("bad-stream")
    tokenizer = make_checkpoint(folder / "base")
    blob_url = str(folder / "blobs")
    settings = run_settings(
        folder,
        checkpoint=folder / "base",
        blob_url=blob_url,
        redis_url=_valkey_server,
        groups_per_step=1,
        max_steps=10_000,
        max_off_policy_steps=10_000,
        probe_port=free_port(),
    )
    log = folder / "trainer.log"
    with redis.Redis.from_url(_valkey_server) as client, log.open("wb") as output:
        client.flushall()
        command = [sys.executable, "-m", "services", "trainer", *flags(settings)]
        process = subprocess.Popen(command, stderr=output, cwd=ROOT, env=environment())
        builder = GroupBuilder(tokenizer, BlobStore(blob_url))
        for blob in (TEXT, BOMB):
            builder.blobs.put(blob)
        made = Run(process, RunStream(client, "run"), builder, log)
        try:
            made.wait_for(lambda: made.stream.state() is not None)
            yield made
        finally:
            process.terminate()
            assert process.wait(timeout=120) == 0, "a stop is clean after all of this"
    assert "Traceback" not in log.read_text()


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize(("spoil", "reason"), CASES.values(), ids=CASES.keys())
def test_an_entry_that_cannot_be_trained_is_dead_with_its_reason(
    run: Run, spoil: Spoil, reason: str
) -> None:
    group = run.next_group()
    spoilt = spoil(msgspec.msgpack.decode(encode_group(group)))
    payload = spoilt if isinstance(spoilt, bytes) else msgspec.msgpack.encode(spoilt)
    run.feed(group.group_id, payload)
    run.expected[group.group_id] = Fate.DEAD
    run.wait_for(lambda: group.group_id in run.stream.fates())

    letter = run.last_letter()
    assert letter[b"group_id"].decode() == group.group_id
    assert reason in letter[b"reason"].decode()
    assert letter[b"group"] == payload, "nothing is lost: the letter holds what came"
    run.assert_alive()


STRAYS: dict[str, dict[bytes, bytes]] = {
    "no group_id": {b"group": b"whose?"},
    "another stray without one": {b"group": b"and this?"},
    "a group_id that is no UTF-8": {b"group_id": b"\xff\xfe", b"group": b"and that?"},
    "other fields altogether": {b"hello": b"world"},
}


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("entry", STRAYS.values(), ids=STRAYS.keys())
def test_an_entry_of_nobody_becomes_a_letter_and_changes_no_fate(
    run: Run, entry: dict[bytes, bytes]
) -> None:
    before = run.stream.client.xlen(run.stream.dead_key)
    run.stream.client.xadd(run.stream.groups_key, entry)
    run.wait_for(lambda: run.stream.client.xlen(run.stream.dead_key) == before + 1)

    letter = run.last_letter()
    assert letter[b"group_id"] == b""
    assert b"names no group_id" in letter[b"reason"]
    assert letter[b"group"] == entry.get(b"group", b"")
    run.assert_alive()
