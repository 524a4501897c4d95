"""The tokenizer of the second checkpoint is Qwen's: tiktoken, on the same ranks, says the same."""

import re
import unicodedata
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from services.policy.tokens import TextStream, Vocabulary
from shared.agent.environment import most_tokens
from shared.agent.prompt import (
    VISION_PLACEHOLDERS,
    error_observation,
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
    system_text,
)
from shared.agent.tools import ZOOM_IN, zoom_caption
from tests.realvocab.vocabulary import NUM_RANKS, TOKEN_IDS, build_tokenizer, encoding, ranks

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
ADDED = re.compile("(" + "|".join(map(re.escape, TOKEN_IDS)) + ")")

known = st.characters(exclude_categories=["Cs", "Cn", "Co"])
pieces = st.one_of(
    st.text(known, max_size=6),
    st.sampled_from(list(TOKEN_IDS)),
    st.sampled_from(
        [
            '{"name": "zoom_in", "arguments": {"bbox_2d": [12, -3.5, 1e2, 40]}}', '":[', "]}}\n",
            "<think>", "</answer>", "\r\n\r\n", "   ", "\t", "don't", "WE'LL", "3.14", "1234567890",
            "e\u0301", "\u0958", "½", "٣", "Ⅻ", "肺癌", "🫁", "👩🏽‍⚕️", "\u200b", "µm", "“quoted”",
        ]
    ),
)  # fmt: skip
texts = st.lists(pieces, max_size=12).map("".join)


def encode(text: str) -> list[int]:
    return build_tokenizer().encode(text, add_special_tokens=False)


def expected_ids(text: str) -> list[int]:
    """tiktoken's ids: added tokens stand for themselves, what is between them is normalised."""
    ids: list[int] = []
    for piece in ADDED.split(text):
        if piece in TOKEN_IDS:
            ids.append(TOKEN_IDS[piece])
        else:
            ids += encoding().encode_ordinary(unicodedata.normalize("NFC", piece))
    return ids


@settings(max_examples=400, deadline=None)
@given(texts)
def test_every_text_is_encoded_as_tiktoken_encodes_it(text: str) -> None:
    assert encode(text) == expected_ids(text)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_a_text_survives_up_to_its_normal_form(vocabulary: Vocabulary, text: str) -> None:
    normal = "".join(
        p if p in TOKEN_IDS else unicodedata.normalize("NFC", p) for p in ADDED.split(text)
    )
    ids = encode(text)
    assert build_tokenizer().decode(ids) == normal
    assert "".join(TextStream(vocabulary).push(ids, final=True)) == normal


def test_every_token_stands_for_the_bytes_of_its_rank(vocabulary: Vocabulary) -> None:
    assert len(ranks()) == NUM_RANKS
    assert all(vocabulary.token_bytes(i) == token for token, i in ranks().items())
    assert {t: vocabulary.token_bytes(i).decode() for t, i in TOKEN_IDS.items()} == {
        t: t for t in TOKEN_IDS
    }
    assert vocabulary.token_bytes(151_665) == b"", "a row without a token says nothing"


def test_digits_are_tokens_of_their_own_but_signs_and_brackets_are_not() -> None:
    with_digits = {token for token in ranks() if re.search(rb"\d", token)}
    assert with_digits == {b"%d" % digit for digit in range(10)}
    for merged in (b" [", b'":[', b'":[-', b" [-", b"}}", b"]}", b'{"', b"}}</", b"><"):
        assert merged in ranks()


def test_control_tokens_have_the_documented_ids_and_kinds(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer) == 151_665
    assert {t: tokenizer.convert_tokens_to_ids(t) for t in TOKEN_IDS} == TOKEN_IDS
    documented = {
        "<|endoftext|>": 151_643,
        "<|im_start|>": 151_644,
        "<|im_end|>": 151_645,
        "<|vision_start|>": 151_652,
        "<|vision_end|>": 151_653,
        "<|vision_pad|>": 151_654,
        "<|image_pad|>": 151_655,
        "<|video_pad|>": 151_656,
        "<tool_call>": 151_657,
        "</tool_call>": 151_658,
    }
    assert documented.items() <= TOKEN_IDS.items()
    assert set(VISION_PLACEHOLDERS) <= set(TOKEN_IDS)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    turn = "<|im_start|><think>x</think><tool_call>{}</tool_call><|im_end|>"
    ids = tokenizer.encode(turn, add_special_tokens=False)
    assert ids == encode(turn)
    assert tokenizer.decode(ids, skip_special_tokens=True) == turn[12:-10]


def test_stop_strings_are_one_token_and_several(vocabulary: Vocabulary) -> None:
    assert encode("</tool_call>") == [151_658]
    spelt = [vocabulary.token_bytes(i) for i in encode("A</answer>\n\n")]
    assert spelt == [b"A", b"</", b"answer", b">\n\n"], "the stop ends inside the last token"


def test_the_chat_template_renders_the_prompt_of_the_agent(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    question = prompt_after_image("Which kind?", ("ring", "disc")).split("<|im_end|>")[0]
    messages = [
        {"role": "system", "content": system_text((ZOOM_IN,))},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
    ]

    def render(messages: list[dict[str, object]]) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    prompt = (
        prompt_before_image((ZOOM_IN,))
        + IMAGE
        + prompt_after_image("Which kind?", ("ring", "disc"))
    )
    assert render(messages) == prompt
    assert render(messages[1:]).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + IMAGE
    )


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(-1e9, 1e9)] * 4))
def test_no_observation_takes_more_tokens_than_its_bound(box: tuple[float, ...]) -> None:
    for text in (
        observation_before_image() + observation_after_image(zoom_caption(box)),
        error_observation("box lies outside the image"),
    ):
        assert len(encode(text)) <= most_tokens(text)
