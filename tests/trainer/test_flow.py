import pytest

from services.trainer.flow import check_flow


def test_flow_settings_bound_what_may_be_outstanding_from_both_sides() -> None:
    flow = {
        "groups_per_step": 4,
        "checkpoint_every": 2,
        "publish_every": 1,
        "max_off_policy_steps": 3,
    }
    check_flow(**flow, max_outstanding=8)
    check_flow(**flow, max_outstanding=12)
    with pytest.raises(ValueError, match="max_outstanding is 7, but must lie between 8"):
        check_flow(**flow, max_outstanding=7)
    with pytest.raises(ValueError, match=r"between 8 .* and 12"):
        check_flow(**flow, max_outstanding=13)
