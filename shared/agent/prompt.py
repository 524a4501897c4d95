"""What the policy is told: system text, question, tool results, in the Hermes style of METHOD.md.

Text only: every function returns strings and image slots in order; the policy server tokenises.
The tests compare the whole with the chat template of the shipped tokenizer.
"""

import json
import string
from collections.abc import Sequence

from shared.geometry import Box

ZOOM_TOOL_NAME = "zoom_in"

ZOOM_TOOL_SCHEMA: dict[str, object] = {
    "type": "function",
    "function": {
        "name": ZOOM_TOOL_NAME,
        "description": "Look closer: returns the region of the original image inside the box.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array",
                    "items": {"type": "number"},
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "[x1, y1, x2, y2] in pixels of the image as shown.",
                }
            },
            "required": ["bbox_2d"],
        },
    },
}

SYSTEM_TEXT = (
    "You are a careful radiology assistant. Think inside <think></think>. To look closer at a "
    "region call a tool inside <tool_call></tool_call>. Give the final answer inside "
    "<answer></answer>.\n\n# Tools\n\n<tools>\n" + json.dumps(ZOOM_TOOL_SCHEMA) + "\n</tools>"
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


def prompt_before_image() -> str:
    """Everything up to the image of the first user turn."""
    return f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n"


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


def format_bbox(bbox_2d: Sequence[float]) -> str:
    """`[x1, y1, x2, y2]`, whole numbers without a decimal point."""
    return "[" + ", ".join(f"{c:g}" for c in bbox_2d) + "]"


def observation_after_image(bbox_2d: Sequence[float]) -> str:
    """From the crop to the start of the policy's next turn; `bbox_2d` as the model wrote it."""
    return (
        f" zoomed view of {format_bbox(bbox_2d)}</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


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


def tool_call_text(box_in_view: Sequence[float]) -> str:
    """A well-formed call, as the policy writes it (for supervised scenes and tests)."""
    arguments = json.dumps({"bbox_2d": list(box_in_view)})
    return f'<tool_call>{{"name": "{ZOOM_TOOL_NAME}", "arguments": {arguments}}}</tool_call>'


def describe_box(box: Box) -> str:
    """`[x1, y1, x2, y2]` of an original-pixel box, for logs and pages."""
    return format_bbox(box.as_tuple())
