"""The flow settings of feeder and trainer against each other."""


def check_flow(
    *,
    groups_per_step: int,
    checkpoint_every: int,
    publish_every: int,
    max_off_policy_steps: int,
    max_outstanding: int,
) -> None:
    """Check the flow settings of feeder and trainer against each other (docs/decisions/0009).

    groups_per_step·checkpoint_every ≤ max_outstanding, because nothing is fated before the
    checkpoint that holds it, and max_outstanding ≤ groups_per_step·(max_off_policy_steps −
    publish_every + 1), or groups would grow stale in the queue. Raises `ValueError`.
    """
    least = groups_per_step * checkpoint_every
    most = groups_per_step * (max_off_policy_steps - publish_every + 1)
    if not least <= max_outstanding <= most:
        raise ValueError(
            f"max_outstanding is {max_outstanding}, but must lie between {least} "
            f"(groups_per_step {groups_per_step} · checkpoint_every {checkpoint_every}) and {most} "
            f"(groups_per_step · (max_off_policy_steps {max_off_policy_steps} − publish_every "
            f"{publish_every} + 1))"
        )
