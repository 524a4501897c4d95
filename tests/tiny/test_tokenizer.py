"""The tiny tokenizer: any text survives, digits stand alone, prompts are short."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from services.problems.phantoms import OPTIONS, QUESTION
from services.trainer.tiny.sequences import Speller
from services.trainer.tiny.tokenizer import build_tokenizer
from services.trainer.tiny.wording import (
    ANSWER_THOUGHTS,
    LOOK_THOUGHTS,
    answer_turn,
    corpus,
    look_turn,
    window_turn,
)
from shared.agent.prompt import (
    error_observation,
    format_options,
    next_question,
    observation_after_image,
    observation_before_image,
    observation_without_image,
    prompt_after_image,
    prompt_before_image,
    system_text,
)
from shared.agent.tools import SET_WINDOW, ZOOM_IN, tools_named, zoom_caption
from shared.weights import PolicyManifest
from tests.tiny.conftest import BASE

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_a_round_trip(text: str) -> None:
    tokenizer = build_tokenizer(corpus(QUESTION, OPTIONS)) if not _CACHE else _CACHE[0]
    _CACHE[:] = [tokenizer]
    assert tokenizer.decode(ids(tokenizer, text)) == text


_CACHE: list[PreTrainedTokenizerBase] = []


def test_the_shipped_tokenizer_is_the_one_the_code_builds(
    base_tokenizer: PreTrainedTokenizerBase,
) -> None:
    built = build_tokenizer(corpus(QUESTION, OPTIONS))
    assert built.get_vocab() == base_tokenizer.get_vocab()
    assert len(built) <= 1500


@pytest.mark.parametrize("text", ["[12, 340, 5, 168]", '{"bbox_2d": [7,0,49,42]}', "a1b22.5"])
def test_digits_are_always_tokens_of_their_own(
    base_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    tokens = [base_tokenizer.decode([i]) for i in ids(base_tokenizer, text)]
    assert [t for t in tokens if re.search(r"\d", t)] == re.findall(r"\d", text)


def test_no_token_but_the_single_digits_has_a_digit(
    base_tokenizer: PreTrainedTokenizerBase,
) -> None:
    with_digits = {t for t in base_tokenizer.get_vocab() if re.search(r"\d", t)}
    assert with_digits == set("0123456789")


def test_prompt_and_turns_are_few_tokens(base_tokenizer: PreTrainedTokenizerBase) -> None:
    before = ids(base_tokenizer, prompt_before_image((ZOOM_IN,)))
    after = ids(base_tokenizer, prompt_after_image(QUESTION, OPTIONS))
    assert len(before) + len(after) <= 40
    look = ids(base_tokenizer, look_turn(LOOK_THOUGHTS[0], (112, 105, 154, 147)))
    answer = ids(base_tokenizer, answer_turn(ANSWER_THOUGHTS[0], "C"))
    assert len(look) + len(answer) <= 45


def test_qwens_special_tokens_are_single_tokens(base_tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<tool_call>", "</tool_call>"):
        assert len(ids(base_tokenizer, text)) == 1
    turn = look_turn(LOOK_THOUGHTS[1], (7, 14, 49, 56))
    assert base_tokenizer.decode(ids(base_tokenizer, turn), skip_special_tokens=True) == turn


def test_the_chat_template_renders_the_prompt_of_the_agent(
    base_tokenizer: PreTrainedTokenizerBase,
) -> None:
    question = f" {QUESTION}{format_options(OPTIONS)}"
    tail = " Think first, look closer where you are unsure, then answer."
    call = {"name": "zoom_in", "arguments": {"bbox_2d": [7, 14, 49, 56]}}
    messages = [
        {"role": "system", "content": system_text((ZOOM_IN,))},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question + tail}]},
    ]
    prompt = prompt_before_image((ZOOM_IN,)) + IMAGE + prompt_after_image(QUESTION, OPTIONS)
    rendered = base_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert rendered == prompt
    thought = f"<think>{LOOK_THOUGHTS[0]}</think>"
    seen = {"type": "text", "text": " zoomed view of [7, 14, 49, 56]"}
    messages += [
        {"role": "assistant", "content": thought, "tool_calls": [{"function": call}]},
        {"role": "tool", "content": [{"type": "image"}, seen]},
    ]
    assert base_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == (
        prompt
        + look_turn(LOOK_THOUGHTS[0], (7, 14, 49, 56))
        + observation_before_image()
        + IMAGE
        + observation_after_image(zoom_caption((7, 14, 49, 56)))
    )


def test_the_chat_template_renders_a_further_question_as_the_agent_does(
    base_tokenizer: PreTrainedTokenizerBase,
) -> None:
    tail = " Think first, look closer where you are unsure, then answer."
    answered = answer_turn(ANSWER_THOUGHTS[0], "C")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "looking"}]},
        {"role": "tool", "content": "no longer shown"},
        {"role": "assistant", "content": [{"type": "text", "text": answered}]},
        {"role": "user", "content": f"Second? Options: A. yes B. no{tail}"},
    ]
    rendered = base_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        f"<|im_start|>user\n{IMAGE}First?<|im_end|>\n<|im_start|>assistant\nlooking"
        + observation_without_image()
        + answered
        + next_question("Second?", ["yes", "no"])
    )


def test_the_chat_template_spells_tools_and_errors_as_the_agent_does(
    base_tokenizer: PreTrainedTokenizerBase,
) -> None:
    bare = system_text((ZOOM_IN,)).split("\n\n# Tools")[0]
    rendered = base_tokenizer.apply_chat_template(
        [
            {"role": "system", "content": bare},
            {"role": "tool", "content": "error: box lies outside the image"},
        ],
        tools=[ZOOM_IN.schema],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered.startswith(f"<|im_start|>system\n{system_text((ZOOM_IN,))}<|im_end|>\n")
    observed = error_observation("box lies outside the image").removeprefix("<|im_end|>\n")
    assert rendered.endswith(observed)


def test_the_policy_of_two_tools_has_its_own_tokenizer_and_prompt() -> None:
    folder = BASE.parent / "windowing"
    manifest = msgspec.json.decode((folder / "medvr.json").read_bytes(), type=PolicyManifest)
    tools = tools_named(manifest.tools)
    assert [tool.name for tool in tools] == ["zoom_in", "set_window"]
    shipped = AutoTokenizer.from_pretrained(folder)
    assert build_tokenizer(corpus(QUESTION, OPTIONS, tools)).get_vocab() == shipped.get_vocab()
    rendered = shipped.apply_chat_template(
        [{"role": "system", "content": system_text(tools).split("\n\n# Tools")[0]}],
        tools=[tool.schema for tool in tools],
        tokenize=False,
    )
    assert rendered == f"<|im_start|>system\n{system_text(tools)}<|im_end|>\n"
    assert (folder / "model.safetensors").stat().st_size < 10_000_000


def test_a_hidden_scene_is_spelt_as_two_calls_and_an_answer() -> None:
    tools = (ZOOM_IN, SET_WINDOW)
    tokenizer = build_tokenizer(corpus(QUESTION, OPTIONS, tools))
    speller = Speller(tokenizer, QUESTION, OPTIONS, tools=tools)
    written, labels = speller.conversation((7, 14, 49, 56), "C", (0, 1), window=(40, 350))
    said = tokenizer.decode([label for label in labels if label >= 0])
    turns = [
        window_turn((40, 350)),
        look_turn(LOOK_THOUGHTS[0], (7, 14, 49, 56)),
        answer_turn(ANSWER_THOUGHTS[1], "C"),
    ]
    assert said == "".join(f"{turn}<|im_end|>" for turn in turns)
    assert written.count(speller.image_pad_id) == 3 * 36
    assert len(speller.before_look((40, 350))[0]) < len(written)
