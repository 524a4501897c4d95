"""R_format: the small penalty for a trajectory that does not keep to the wire format."""


def format_reward(
    *, is_well_formed: bool, all_calls_parsed: bool, answer: str | None, penalty: float
) -> float:
    """0 if well formed, every call parsed and an answer was given; else `penalty` (METHOD.md)."""
    has_answer = answer is not None and answer.strip() != ""
    return 0.0 if is_well_formed and all_calls_parsed and has_answer else penalty
