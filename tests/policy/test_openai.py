"""vLLM's OpenAI-compatible routes work with the official client and fetch nothing."""

import base64

import openai
import pytest

from tests.fixtures_policy import RunningPolicy
from tests.policy.conftest import MakeImage


def _ask(server: RunningPolicy, url: str) -> openai.types.chat.ChatCompletion:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        return client.chat.completions.create(
            model="medvr-policy",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": "What is it?"},
                    ],
                }
            ],
            max_tokens=8,
            temperature=0,
        )


def test_a_data_url_image_is_answered(policy_server: RunningPolicy, make_image: MakeImage) -> None:
    encoded = base64.b64encode(make_image(30).png).decode()
    completion = _ask(policy_server, f"data:image/png;base64,{encoded}")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 8
    assert completion.usage.prompt_tokens > 18


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/image.png", "https://example.org/image.png", "file:///etc/passwd"],
)
def test_nothing_is_fetched(policy_server: RunningPolicy, url: str) -> None:
    with pytest.raises(openai.BadRequestError):
        _ask(policy_server, url)
