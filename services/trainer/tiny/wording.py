"""What the tiny policy says and is asked: the few sentences its tokenizer and scenes share.

Scenes name their sentences by number, so that the scene file stays compact and the words live here
alone. `services.problems` has its own copy of the question and options (services never import each
other); the scene file carries them, and the corpus below needs them only to give them long tokens.
"""

from shared.agent.prompt import (
    error_observation,
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
    tool_call_text,
)

LOOK_THOUGHTS = (
    "I look closer there.",
    "A spot may hide here.",
    "Let me zoom in.",
    "This place is unclear to me.",
)
"""What the policy may think before it calls the tool."""

ANSWER_THOUGHTS = (
    "Now I can see it.",
    "The crop tells.",
    "That is enough.",
)
"""What the policy may think before it answers."""

IMAGE_TEXT = "<|vision_start|><|image_pad|><|vision_end|>"


def look_turn(thought: str, bbox_2d: tuple[int, int, int, int]) -> str:
    """A turn that ends in a zoom."""
    return f"<think>{thought}</think>{tool_call_text(bbox_2d)}"


def answer_turn(thought: str, answer: str) -> str:
    """A turn that ends in an answer."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def corpus(question: str, options: tuple[str, ...]) -> list[str]:
    """Whole conversations, enough for byte-pair merges to make each fixed sentence one token."""
    box = (14, 35, 56, 77)
    conversations = []
    for look in LOOK_THOUGHTS:
        for answer in ANSWER_THOUGHTS:
            conversations.append(
                prompt_before_image()
                + IMAGE_TEXT
                + prompt_after_image(question, options)
                + look_turn(look, box)
                + observation_before_image()
                + IMAGE_TEXT
                + observation_after_image(box)
                + answer_turn(answer, "A")
                + "<|im_end|>\n"
            )
    conversations.append(error_observation("box must have x1 < x2 and y1 < y2"))
    conversations.append(error_observation("box lies outside the image"))
    return conversations
