"""The demo's hand on Valkey and on the weights channel."""

import time

import httpx
import redis

from services.local.state import StackError
from shared.api.policy import PolicyDescription
from shared.weights import ChannelPointer, channel_key, decode_pointer, encode_pointer

_POLL_S = 0.3


def forget_run(client: redis.Redis, run: str) -> None:
    """Delete every key of a run: its state, its stream, its queue."""
    for key in client.scan_iter(match=f"medvr:run:{run}:*", count=1000):
        client.delete(key)


def forget_channel(client: redis.Redis, channel: str) -> None:
    """Point a channel at nothing: whoever starts now serves its first checkpoint."""
    client.delete(channel_key(channel))


def read_channel(client: redis.Redis, channel: str) -> ChannelPointer | None:
    """What a channel points at; None if nothing."""
    value = client.get(channel_key(channel))
    return None if value is None else decode_pointer(value)  # pyright: ignore[reportArgumentType]


def point_channel(client: redis.Redis, channel: str, pointer: ChannelPointer) -> None:
    """Make the followers of a channel serve a published version."""
    client.set(channel_key(channel), encode_pointer(pointer))


def describe_policy(policy_url: str, timeout_s: float = 10.0) -> PolicyDescription:
    """What the policy serves now. Raises `httpx.HTTPError`."""
    url = f"{policy_url}/medvr/v1/policy"
    answer = httpx.get(url, timeout=timeout_s, trust_env=False).raise_for_status()
    return PolicyDescription.model_validate_json(answer.content)


def wait_for_version(policy_url: str, run: str, version: int, timeout_s: float) -> None:
    """Return when the policy serves this version. Raises `StackError`."""
    deadline = time.monotonic() + timeout_s
    serving = "nothing"
    while time.monotonic() < deadline:
        try:
            policy = describe_policy(policy_url)
        except httpx.HTTPError as error:
            serving = f"no answer ({type(error).__name__})"
        else:
            if (policy.run, policy.version) == (run, version):
                return
            serving = f"{policy.run}, version {policy.version}"
        time.sleep(_POLL_S)
    raise StackError(
        f"the policy did not come to serve {run}, version {version}, within {timeout_s:.0f} s; "
        f"it serves {serving}"
    )
