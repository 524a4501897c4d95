"""Where a demo keeps what it makes: `.medvr/demo`, and its runs' folders beside it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from services.local.demo_settings import Arm, DemoPlan
from services.local.processes import StackPaths
from services.local.state import StackError
from shared.problem import read_manifest


@dataclass(frozen=True)
class DemoFolder:
    """The files of one demo."""

    paths: StackPaths
    plan: DemoPlan

    @property
    def root(self) -> Path:
        """Journal, report, table and plots."""
        return self.paths.root / "demo"

    @property
    def journal(self) -> Path:
        """Which stages are done."""
        return self.root / "progress.json"

    @property
    def problems(self) -> Path:
        """All problem sets."""
        return self.root / "problems"

    @property
    def train_set(self) -> Path:
        """The training problems."""
        return self.problems / self.plan.train_set

    def test_set(self, name: str) -> Path:
        """A held-out problem set."""
        return self.problems / f"{name}-test"

    def problem_sets(self) -> dict[Path, int]:
        """Folder and size of every problem set of the plan."""
        tests = {self.test_set(name): self.plan.num_test_problems for name in self.plan.test_sets}
        return {self.train_set: self.plan.num_train_problems, **tests}

    def missing_sets(self) -> list[str]:
        """Names of the problem sets that are not there in the plan's size."""
        return [f.name for f, number in self.problem_sets().items() if not _has_set(f, number)]

    def evaluation(self, moment: str, test_set: str, arm: Arm | None = None) -> Path:
        """An evaluation; before training there is no arm."""
        name = f"{test_set}-{moment}"
        return self.root / "evaluations" / (name if arm is None else f"{name}-{arm.value}")

    def outcome(self, arm: Arm) -> Path:
        """What a finished training came to."""
        return self.root / f"training-{arm.value}.json"

    def curves(self, arm: Arm) -> Path:
        """Learning curves of an arm."""
        return self.root / f"curves-{arm.value}.png"

    def run_folder(self, arm: Arm) -> Path:
        """Checkpoints and logs that the trainer writes."""
        return self.paths.runs / self.plan.run_of(arm)

    def _run_folders(self) -> list[Path]:
        runs = [self.plan.run_of(arm) for arm in Arm]
        return [root / run for root in (self.paths.runs, self.paths.weights) for run in runs]

    def remove(self) -> None:
        """Remove all that a demo made on disk; blobs are shared and stay."""
        for folder in (self.root, *self._run_folders()):
            if folder.is_dir():
                shutil.rmtree(folder)

    def refuse_leftovers(self) -> None:
        """Raises `StackError` if a demo without a journal left its runs: versions would clash."""
        left = [str(folder) for folder in self._run_folders() if folder.exists()]
        if left and not self.journal.is_file():
            raise StackError(
                f"an earlier demo left {', '.join(left)} but no {self.journal}; --fresh removes it"
            )


def _has_set(folder: Path, num_problems: int) -> bool:
    if not (folder / "manifest.json").is_file():
        return False
    return read_manifest(folder).num_problems == num_problems
