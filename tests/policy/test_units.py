"""What needs no engine: EVR's entropies, exact texts, coalesced fetches, settings, versions."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

from services.policy import version
from services.policy.fetch import EntropyFetcher, Taken, Wanted
from services.policy.launch import (
    image_cache,
    remove_leftovers,
    vllm_arguments,
    vllm_environment,
)
from services.policy.settings import PolicySettings
from services.policy.tokens import TextStream, Vocabulary
from shared.agent.entropy import baseline_entropy_nats, tool_entropy_nats


def test_the_baseline_is_the_mean_of_the_first_window() -> None:
    entropies = [1.0] * 20 + [9.0] * 20
    assert baseline_entropy_nats(entropies, 40) == 1.0
    assert baseline_entropy_nats(entropies, 40, window=40) == 5.0


def test_the_baseline_ends_before_the_first_coordinate() -> None:
    assert baseline_entropy_nats([1.0, 2.0, 9.0], 2) == 1.5
    assert baseline_entropy_nats([1.0, 2.0], 0) == 0.0


def test_tool_entropy_is_the_highest_mean_of_eight_consecutive_tokens() -> None:
    entropies = [0.0, 0.0, *[2.0] * 8, 0.0]
    assert tool_entropy_nats(entropies) == 2.0
    assert tool_entropy_nats([1.0, 0.0, 3.0, 0.0], window=2) == 1.5


def test_few_argument_tokens_are_averaged_whole() -> None:
    assert tool_entropy_nats([1.0, 2.0]) == 1.5
    with pytest.raises(ValueError, match="at least one"):
        tool_entropy_nats([])


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    from tests.policy.checkpoint import build_tokenizer

    tokenizer = build_tokenizer()
    return Vocabulary(tokenizer, len(tokenizer), [])


@pytest.mark.parametrize("text", ["zoom in", "Ödem – 45 µm", "肺炎 🫁", "<tool_call>é<|im_end|>"])
def test_texts_of_tokens_concatenate(vocabulary: Vocabulary, text: str) -> None:
    ids = list(vocabulary.encode(text))
    stream = TextStream(vocabulary)
    texts = stream.push(ids[:2], final=False) + stream.push(ids[2:], final=True)
    assert "".join(texts) == text
    assert len(texts) == len(ids)


def test_a_long_text_is_not_kept(vocabulary: Vocabulary) -> None:
    long, short = "zoom in " * 1000, "zoom in once"
    assert vocabulary.encode(long) == vocabulary.encode(long)
    assert vocabulary.encode(long) is not vocabulary.encode(long)
    assert vocabulary.encode(short) is vocabulary.encode(short)


def test_an_unfinished_character_is_said_in_the_last_token(vocabulary: Vocabulary) -> None:
    ids = list(vocabulary.encode("a肺"))[:-1]
    assert TextStream(vocabulary).push(ids, final=True)[-1].endswith("\ufffd")


async def test_fetches_that_wait_share_a_call() -> None:
    calls: list[list[Wanted]] = []

    async def take(wanted: list[Wanted]) -> list[Taken]:
        calls.append(wanted)
        await asyncio.sleep(0.01)
        return [([float(start)], []) for _, start, _ in wanted]

    fetcher = EntropyFetcher(take)
    results = await asyncio.gather(
        *(fetcher.fetch(str(index), index, final=True) for index in range(40))
    )
    assert [entropies for entropies, _ in results] == [[float(i)] for i in range(40)]
    assert len(calls) <= 2


async def test_a_failed_call_fails_those_who_waited_for_it() -> None:
    async def take(_: list[Wanted]) -> list[Taken]:
        raise RuntimeError("engine dead")

    with pytest.raises(RuntimeError, match="engine dead"):
        await EntropyFetcher(take).fetch("a", 0, final=True)


def test_help_loads_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from services.policy.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert output.strip().endswith("set()")


def test_an_untested_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "TESTED", ((0, 1), (0, 2)))
    with pytest.raises(SystemExit, match=r"tested with vLLM >= 0\.1"):
        version.require_tested_vllm()


def test_settings_reach_vllm_and_its_processes() -> None:
    settings = PolicySettings.load(["--model", "/m", "--port", "9001", "--max-model-len", "512"])
    arguments = vllm_arguments(settings)
    assert arguments[arguments.index("--port") + 1] == "9001"
    assert arguments[arguments.index("--max-model-len") + 1] == "512"
    environment = vllm_environment(settings)
    assert environment["MEDVR_POLICY_PORT"] == "9001"
    assert environment["VLLM_PLUGINS"] == "medvr"


def test_a_server_takes_the_shared_memory_of_its_port_and_removes_what_a_killed_one_left(
    free_port: Callable[[], int],
) -> None:
    settings = PolicySettings(model="m", port=free_port())
    leftover = image_cache(settings)
    assert vllm_environment(settings)["VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"] == leftover.name
    leftover.write_bytes(b"pixels")
    remove_leftovers(settings)
    assert not leftover.exists()
    remove_leftovers(settings)
