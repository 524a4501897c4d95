"""A byte-level BPE tokenizer of about a thousand tokens, spelt like Qwen's.

Any UTF-8 text survives a round trip (the 256 bytes are tokens). Digits and the answer tags are
always pieces of their own, so a coordinate digit never hides inside a longer token and a fork can
be cut exactly before it. There is no split at white space: the fixed sentences of the prompt become
single long tokens, which is what makes two CPU cores enough.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MAX_VOCABULARY = 1400

END_OF_TEXT = "<|endoftext|>"
TURN_END = "<|im_end|>"

_CONTROL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    TURN_END,
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
"""Qwen2.5's control tokens, in its order; hidden when special tokens are skipped."""

_WORD_TOKENS = ("<tool_call>", "</tool_call>")
"""Single tokens in Qwen2.5 as well, but text: never skipped when decoding."""

CHAT_TEMPLATE = """\
{%- macro body(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>' + body(message.content) + '</tool_response>' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content -%}{{ body(message.content) }}{%- endif -%}
{%- if loop.first and message.role == 'system' and tools -%}
{{- '\\n\\n# Tools\\n\\n<tools>' -}}
{%- for tool in tools -%}{{ '\\n' + tool | tojson }}{%- endfor -%}
{{- '\\n</tools>' -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function if call.function is defined else call -%}
{{- '<tool_call>{"name": "' + call.name + '", "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def build_tokenizer(conversations: list[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer on whole conversations; the same conversations give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"</?(?:think|answer)>"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    control = [AddedToken(text, special=True, normalized=False) for text in _CONTROL_TOKENS]
    words = [AddedToken(text, special=False, normalized=False) for text in _WORD_TOKENS]
    pieces = [piece for text in conversations for piece in _between_control_tokens(text)]
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(control) - len(words),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(words)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[t for t in _CONTROL_TOKENS if t not in {END_OF_TEXT, TURN_END}],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _between_control_tokens(text: str) -> list[str]:
    """The text cut at control tokens, as the tokenizer itself will cut it."""
    pieces = [text]
    for token in _CONTROL_TOKENS + _WORD_TOKENS:
        pieces = [part for piece in pieces for part in piece.split(token)]
    return [piece for piece in pieces if piece]
