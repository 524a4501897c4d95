"""`medvr local ship`: the policy a finished demo ended with, as a checkpoint that `up` serves.

The folder is an ordinary HF checkpoint. Its `medvr.json` says how it was made: the demo's command,
seeds and revision, what it started from, and what was measured before and after.
"""

import shutil
from pathlib import Path

import msgspec

from services.local.demo_folder import DemoFolder
from services.local.demo_report import DemoReport, Measured
from services.local.demo_settings import Arm, DemoPlan
from services.local.processes import StackPaths
from services.local.settings import ShipSettings
from services.local.state import StackError
from shared.weights import (
    POLICY_MANIFEST,
    VERSION_MANIFEST,
    read_policy_manifest,
    verify_version,
)

_ARM = Arm.MEDVR


def ship(settings: ShipSettings) -> Path:
    """Copy the final version of the demo's method arm; the folder. Raises `StackError`."""
    demo = DemoFolder(StackPaths(settings.folder.resolve()), DemoPlan())
    report = _read_report(demo.root / "report.json")
    final = report.training[_ARM.value].outcome.final_version
    version = Path(final.path)
    verify_version(version)
    staging = settings.out.with_name(settings.out.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(version, staging, ignore=shutil.ignore_patterns(VERSION_MANIFEST))
    manifest = read_policy_manifest(version)
    made_by = {
        "command": f"medvr local demo --seed {report.plan.seed}, then medvr local ship",
        "arm": _ARM.value,
        "steps": final.version,
        "revision": report.revision,
        "seeds": report.seeds,
        "training_seconds": round(report.training[_ARM.value].outcome.seconds),
        "measured_at_temperature": report.plan.evaluation_temperature,
        "metrics": {
            test_set: {moment: _means(m) for moment, m in moments.items()}
            for test_set, moments in report.arms[_ARM.value].items()
        },
        "started_from": manifest.made_by,
    }
    encoded = msgspec.json.encode(msgspec.structs.replace(manifest, made_by=made_by))
    (staging / POLICY_MANIFEST).write_bytes(msgspec.json.format(encoded) + b"\n")
    shutil.rmtree(settings.out, ignore_errors=True)
    staging.rename(settings.out)
    return settings.out


def _read_report(path: Path) -> DemoReport:
    try:
        report = msgspec.json.decode(path.read_bytes(), type=DemoReport)
    except OSError as error:
        raise StackError(f"no finished demo: {path} cannot be read ({error.strerror})") from error
    except msgspec.MsgspecError as error:
        raise StackError(f"{path} is not the report of a demo: {error}") from error
    if _ARM.value not in report.training:
        raise StackError(f"{path}: the demo did not train the arm {_ARM.value}")
    return report


def _means(measured: Measured) -> dict[str, float | None]:
    """Accuracy, hit rate and box area, without their intervals."""
    hits, area = measured.hit_rate, measured.box_area
    return {
        "accuracy": round(measured.accuracy[0], 4),
        "hit_rate": None if hits is None else round(hits[0], 4),
        "box_area": None if area is None else round(area[0], 4),
    }
