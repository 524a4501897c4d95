"""EVR's two entropies (METHOD.md): how sure the policy was before its tool call, and inside it.

All entropies are exact over the vocabulary, in nats, of the temperature-1 distribution each token
was drawn from. Nothing here keeps state: a baseline belongs to one trajectory and dies with it.
"""

from collections.abc import Sequence
from itertools import accumulate

BASELINE_WINDOW_TOKENS = 20
TOOL_WINDOW_TOKENS = 8


def baseline_entropy_nats(
    entropies_nats: Sequence[float],
    num_tokens_before_first_coordinate: int,
    window: int = BASELINE_WINDOW_TOKENS,
) -> float:
    """H_base: mean of H_t over the first min(window, tokens before the first coordinate) tokens.

    `entropies_nats` are those of the trajectory's sampled tokens in order. A trajectory without a
    parseable call passes their number. 0 tokens give 0.
    """
    num_tokens = min(window, num_tokens_before_first_coordinate, len(entropies_nats))
    if num_tokens <= 0:
        return 0.0
    return sum(entropies_nats[:num_tokens]) / num_tokens


def tool_entropy_nats(
    entropies_of_argument_tokens: Sequence[float], window: int = TOOL_WINDOW_TOKENS
) -> float:
    """H_tool: the highest mean of H_t over `window` consecutive argument tokens of one call.

    The tokens run from that of the first argument (a box: its first coordinate) through that in
    which the last ends (a box: its closing bracket); if there are fewer than `window`, the mean is
    over all of them. Raises `ValueError` if there are none.
    """
    num_tokens = len(entropies_of_argument_tokens)
    if num_tokens == 0:
        raise ValueError("a call has at least one argument token")
    width = min(window, num_tokens)
    sums = list(accumulate(entropies_of_argument_tokens, initial=0.0))
    return max(sums[i + width] - sums[i] for i in range(num_tokens - width + 1)) / width
