"""What the tiny policy says and is asked: the few sentences its tokenizer and scenes share.

Scenes name their sentences by number, so that the scene file stays compact and the words live here
alone. `services.problems` has its own copy of the question and options (services never import each
other); the scene file carries them, and the corpus below needs them only to give them long tokens.
"""

from collections.abc import Sequence

from shared.agent.prompt import (
    error_observation,
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.agent.tools import SET_WINDOW, ZOOM_IN, Tool, window_caption, zoom_caption
from shared.trajectory import WindowArguments

LOOK_THOUGHTS = (
    "I look closer there.",
    "A spot may hide here.",
    "Let me zoom in.",
    "This place is unclear to me.",
)
"""What the policy may think before it calls the tool."""

WINDOW_THOUGHT = "Nothing shows in this window."
"""What it thinks before it sets another."""

ANSWER_THOUGHTS = (
    "Now I can see it.",
    "The crop tells.",
    "That is enough.",
)
"""What the policy may think before it answers."""

IMAGE_TEXT = "<|vision_start|><|image_pad|><|vision_end|>"


def look_turn(thought: str, bbox_2d: tuple[int, int, int, int]) -> str:
    """A turn that ends in a zoom."""
    return f"<think>{thought}</think>{ZOOM_IN.call_text(bbox_2d=bbox_2d)}"


def window_turn(window: tuple[int, int]) -> str:
    """A turn that ends in setting a window, (center, width)."""
    center, width = window
    return f"<think>{WINDOW_THOUGHT}</think>{SET_WINDOW.call_text(center=center, width=width)}"


def answer_turn(thought: str, answer: str) -> str:
    """A turn that ends in an answer."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def corpus(
    question: str, options: tuple[str, ...], tools: Sequence[Tool] = (ZOOM_IN,)
) -> list[str]:
    """Whole conversations, enough for byte-pair merges to make each fixed sentence one token."""
    box, window = (14, 35, 56, 77), (40, 350)
    setting = (
        window_turn(window)
        + observation_before_image()
        + IMAGE_TEXT
        + observation_after_image(window_caption(WindowArguments(*window)))
        if SET_WINDOW in tools
        else ""
    )
    conversations = [
        prompt_before_image(tools)
        + IMAGE_TEXT
        + prompt_after_image(question, options)
        + setting
        + look_turn(look, box)
        + observation_before_image()
        + IMAGE_TEXT
        + observation_after_image(zoom_caption(box))
        + answer_turn(answer, "A")
        + "<|im_end|>\n"
        for look in LOOK_THOUGHTS
        for answer in ANSWER_THOUGHTS
    ]
    conversations.append(error_observation("box must have x1 < x2 and y1 < y2"))
    conversations.append(error_observation("box lies outside the image"))
    return conversations
