"""Text to ids and ids to text: byte-exact both ways, for byte-level BPE tokenizers (all of Qwen's).

Every token is a fixed string of bytes, so a turn's text is the concatenation of its tokens' bytes
and a token's text is what of them completes a UTF-8 character. Control tokens, end-of-sequence
included, stand for their own spelling: nothing is lost between ids and text.
"""

import codecs
from functools import lru_cache
from typing import Any

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""End of sequence: they stop every turn and are kept, in ids and in text."""

_NUM_CACHED = 1024
_CACHED_CHARS = 4096
"""Prompts and observations are shorter; a longer text does not stay in memory."""


def _byte_by_character() -> dict[str, int]:
    """GPT-2's alphabet: how byte-level BPE spells bytes as printable characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    mapping = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    mapping.update({chr(256 + index): byte for index, byte in enumerate(rest)})
    return mapping


class Vocabulary:
    """The tokenizer as this service needs it."""

    def __init__(self, tokenizer: Any, vocab_size: int, forbidden_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.forbidden_ids = frozenset(forbidden_ids)
        ids: dict[str, int] = tokenizer.get_vocab()
        self._bytes_by_id = _token_bytes(tokenizer, ids)
        self.vision_start_id = ids["<|vision_start|>"]
        self.vision_end_id = ids["<|vision_end|>"]
        self.image_pad_id = ids["<|image_pad|>"]
        self.end_ids = [ids[token] for token in END_TOKENS if token in ids]
        self._encode_short = lru_cache(maxsize=_NUM_CACHED)(self._encode)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text; control tokens are recognised, nothing is added."""
        return (self._encode_short if len(text) <= _CACHED_CHARS else self._encode)(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; none for an id the tokenizer does not use."""
        return self._bytes_by_id.get(token_id, b"")

    def describe(self, token_id: int) -> str:
        """`151655 (<|image_pad|>)`, for messages."""
        text = self.token_bytes(token_id).decode("utf-8", "replace")
        return f"{token_id} ({text})" if text else str(token_id)


def _token_bytes(tokenizer: Any, ids: dict[str, int]) -> dict[int, bytes]:
    added = set(tokenizer.get_added_vocab())
    alphabet = _byte_by_character()
    bytes_by_id: dict[int, bytes] = {}
    for token, token_id in ids.items():
        if token in added or not all(character in alphabet for character in token):
            bytes_by_id[token_id] = token.encode()
        else:
            bytes_by_id[token_id] = bytes(alphabet[character] for character in token)
    return bytes_by_id


class TextStream:
    """Texts of the tokens of one turn, in order; their concatenation is the turn's exact text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: list[int], *, final: bool) -> list[str]:
        """One text per token; a token that ends no character has an empty one.

        `final` closes the turn: an unfinished character becomes U+FFFD in the last token's text.
        """
        decode, token_bytes = self._decoder.decode, self._vocabulary.token_bytes
        texts = [decode(token_bytes(token_id)) for token_id in token_ids]
        rest = decode(b"", True) if final else ""
        if rest and texts:
            texts[-1] += rest
        return texts
