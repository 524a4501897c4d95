"""Everything is killed twice and Redis is emptied, at random moments of one short real run."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.chaos.run import ChaosReport, ChaosSettings, disturbed_run
from tests.chaos.schedule import PROCESSES, Target, schedule


def test_a_schedule_is_a_function_of_its_seed_and_strikes_everything() -> None:
    def of(seed: int) -> list:
        return schedule(seed, rounds=2, max_steps=12, mean_pause_s=4.0)

    assert of(5) == of(5)
    assert len({tuple(blow.target for blow in of(seed)) for seed in range(20)}) == 20
    for seed in range(20):
        counts = Counter(blow.target for blow in of(seed))
        assert counts == {**dict.fromkeys(PROCESSES, 2), Target.EMPTIED: 1}
        assert [b.latest_step for b in of(seed)] == sorted(b.latest_step for b in of(seed))
        assert max(blow.latest_step for blow in of(seed)) == 10
        assert all(0 < blow.pause_s <= 12 for blow in of(seed))


@pytest.mark.timeout(2400)
def test_killed_everywhere_twice_a_run_completes_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit is in `disturbed_run`: fates, versions, cases."""
    settings = ChaosSettings(seed=0)
    with capsys.disabled():
        report = disturbed_run(tmp_path, settings, Console(soft_wrap=True))

    struck = Counter(row.target for row in report.recoveries)
    assert struck == {**{t.value: 2 for t in PROCESSES}, Target.EMPTIED.value: 1}
    assert all(row.ready_s is not None for row in report.recoveries)
    worked_again = {row.target for row in report.recoveries if row.working_s is not None}
    assert worked_again == set(struck), "after one blow at least, for as long as the run lasted"
    written = msgspec.json.decode((tmp_path / "recovery.json").read_bytes(), type=ChaosReport)
    assert written == report
