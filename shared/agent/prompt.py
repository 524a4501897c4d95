"""What the policy is told: system text, question, tool results, in the Hermes style of METHOD.md.

Text only: every function returns strings and image slots in order; the policy server tokenises.
The tests compare the whole with the chat template of the shipped tokenizer.
"""

import json
import string
from collections.abc import Sequence

from shared.agent.tools import Tool

_ROLE_TEXT = (
    "You are a careful radiology assistant. Think inside <think></think>. To look closer at a "
    "region call a tool inside <tool_call></tool_call>. Give the final answer inside "
    "<answer></answer>."
)

INSTRUCTION_TEXT = " Think first, look closer where you are unsure, then answer."

TURN_STOPS = ("</tool_call>", "</answer>")
"""A turn ends at the first of these; the stop stays in the tokens."""

VISION_PLACEHOLDERS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Never sampled by the policy: one of them would break every later turn."""


def format_options(options: Sequence[str]) -> str:
    """` Options: A. first B. second`, or nothing for an open question."""
    if not options:
        return ""
    lettered = (
        f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, options, strict=False)
    )
    return " Options: " + " ".join(lettered)


def system_text(tools: Sequence[Tool]) -> str:
    """The system message: the role, and the tools this policy was trained with."""
    described = "".join(f"{json.dumps(tool.schema)}\n" for tool in tools)
    return f"{_ROLE_TEXT}\n\n# Tools\n\n<tools>\n{described}</tools>"


def prompt_before_image(tools: Sequence[Tool]) -> str:
    """Everything up to the image of the first user turn."""
    return f"<|im_start|>system\n{system_text(tools)}<|im_end|>\n<|im_start|>user\n"


def prompt_after_image(question: str, options: Sequence[str]) -> str:
    """Everything from the image to the start of the policy's first turn."""
    body = f" {question}{format_options(options)}{INSTRUCTION_TEXT}"
    return f"{body}<|im_end|>\n<|im_start|>assistant\n"


def next_question(question: str, options: Sequence[str]) -> str:
    """Closes the policy's answer and asks a further question about the same image."""
    body = f"{question}{format_options(options)}{INSTRUCTION_TEXT}"
    return f"<|im_end|>\n<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n"


def observation_before_image() -> str:
    """Closes the policy's turn and opens the tool response."""
    return "<|im_end|>\n<|im_start|>user\n<tool_response>"


def observation_after_image(caption: str) -> str:
    """From the picture to the start of the policy's next turn; `caption` says what it shows."""
    return f" {caption}</tool_response><|im_end|>\n<|im_start|>assistant\n"


def observation_without_image() -> str:
    """The observation to an earlier question, when there is no room to show its crop again."""
    return (
        f"{observation_before_image()}no longer shown</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def error_observation(message: str) -> str:
    """The whole observation that answers a bad call: an error text in place of the image."""
    return (
        f"{observation_before_image()}error: {message}</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
