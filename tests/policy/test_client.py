"""The client says what the server said; the server says what it serves."""

import pytest

from shared.api.policy import GenerateRequest, TextSegment
from shared.clients.policy import PolicyClient
from shared.errors import PolicyError


async def test_the_client_raises_what_the_server_said(policy: PolicyClient) -> None:
    request = GenerateRequest(segments=[TextSegment(text="A")], max_tokens=2, temperature=0.5)
    with pytest.raises(PolicyError, match=r"422 .* temperature 0\.5") as raised:
        await policy.generate(request)
    assert not raised.value.is_transient
    with pytest.raises(PolicyError, match="temperature"):
        await anext(policy.stream(request))


async def test_it_says_what_it_serves(policy: PolicyClient) -> None:
    description = await policy.describe()
    assert (description.model, description.run, description.version) == ("random", "base", 0)
    assert description.channel == "policy:train"
    assert description.view.min_pixels == description.view.max_pixels == 112 * 112
    assert description.max_model_len_tokens == 1024
