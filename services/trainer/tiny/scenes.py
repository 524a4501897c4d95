"""Reads the file that `medvr problems scenes` wrote: the other half of its format.

Rows are kept as PNG bytes and decoded when a batch is made, so memory stays near the file's size.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import MedvrError

FORMAT = "3"


class SceneFileError(MedvrError):
    """A file that `medvr problems scenes` did not write, or not in this format."""


@dataclass(frozen=True)
class Look:
    """One zoom into a scene."""

    bbox_2d: tuple[int, int, int, int]
    """In view pixels."""
    crop_png: bytes
    is_imitated: bool
    """Whether the policy learns to look there, or only to read what is shown."""

    def shows(self, target: tuple[float, float], margin_px: float = 4.0) -> bool:
        """Whether the target's centre is in the crop, at least `margin_px` from its edges."""
        (x1, y1, x2, y2), (x, y) = self.bbox_2d, target
        return x1 + margin_px <= x < x2 - margin_px and y1 + margin_px <= y < y2 - margin_px


@dataclass(frozen=True)
class Scene:
    """A view and looks into it."""

    view_png: bytes
    looks: tuple[Look, ...]
    answer: str
    target: tuple[float, float]
    """Its centre, in view pixels: for the hints, never in a sequence."""
    first_png: bytes | None = None
    """What is shown before a window is set, where the target does not show at once."""
    window: tuple[int, int] | None = None
    """(center, width) of the window to be set then; the view and the looks are in it."""


@dataclass(frozen=True)
class Probe:
    """A phantom the base is measured on, never trained on."""

    image_png: bytes
    """The original."""
    answer: str
    true_box: tuple[int, int, int, int]
    """In original pixels."""


@dataclass(frozen=True)
class SceneFile:
    """All of it, with what is asked."""

    question: str
    options: tuple[str, ...]
    scenes: tuple[Scene, ...]
    probes: tuple[Probe, ...]
    about: dict[str, str]
    """Settings the file was rendered with."""


def read_scene_file(path: Path) -> SceneFile:
    """Read the whole file. Raises `SceneFileError`."""
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SceneFileError(f"{path} cannot be read as parquet: {error}") from error
    about = {k.decode(): v.decode() for k, v in (table.schema_arrow.metadata or {}).items()}
    if about.get("format") != FORMAT:
        raise SceneFileError(f"{path} is not a scene file of format {FORMAT}")
    scenes: list[Scene] = []
    probes: list[Probe] = []
    for batch in table.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            if row["row_kind"] == "probe":
                x1, y1, x2, y2 = row["true_box"]
                probes.append(Probe(row["image_png"], row["answer"], (x1, y1, x2, y2)))
                continue
            looks = tuple(
                Look(tuple(look["bbox_2d"]), look["crop_png"], look["is_imitated"])
                for look in row["looks"]
            )
            x, y = row["target"]
            window = tuple(row["window"]) or None
            scene = Scene(row["image_png"], looks, row["answer"], (x, y), row["first_png"], window)
            scenes.append(scene)
    return SceneFile(
        question=about["question"],
        options=tuple(about["options"].split("\n")),
        scenes=tuple(scenes),
        probes=tuple(probes),
        about=about,
    )
