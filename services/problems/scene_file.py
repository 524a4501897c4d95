"""Scenes and phantoms written to one parquet file, for `medvr tiny-base` and then the bin.

Two sorts of rows: `scene` (what is imitated) and `probe` (brain phantoms with their true box, on
which the trained base is only measured). Pictures are PNG bytes, rendered by `show_region`. A
scene that is hidden at first has the picture it is first shown as, and the window to be set.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from services.problems.phantoms import OPTIONS, QUESTION, render_phantom
from services.problems.scenes import render_hidden_scene, render_scene
from shared.progress import progress
from shared.render import encode_png

LETTERS = "ABCDEFGHIJ"
FORMAT = 3

_ROWS_PER_GROUP = 256
_LOOK = pa.struct(
    [
        ("bbox_2d", pa.list_(pa.int16())),
        ("crop_png", pa.binary()),
        ("is_imitated", pa.bool_()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("row_kind", pa.string()),
        ("image_png", pa.binary()),
        ("looks", pa.list_(_LOOK)),
        ("answer", pa.string()),
        ("target", pa.list_(pa.float32())),
        ("first_png", pa.binary()),
        ("window", pa.list_(pa.int16())),
        ("true_box", pa.list_(pa.int16())),
    ]
)


def _scene_row(
    index: int, *, seed: int, found_share: float, hidden_share: float
) -> dict[str, object]:
    is_hidden = random.Random(f"{seed}:{index}").random() < hidden_share
    render = render_hidden_scene if is_hidden else render_scene
    scene = render(seed, index, found_share)
    looks = [
        {
            "bbox_2d": look.bbox_2d,
            "crop_png": encode_png(look.crop),
            "is_imitated": look.is_imitated,
        }
        for look in scene.looks
    ]
    return {
        "row_kind": "scene",
        "image_png": encode_png(scene.view),
        "looks": looks,
        "answer": LETTERS[scene.kind],
        "target": scene.target,
        "first_png": encode_png(scene.hidden.view) if scene.hidden else None,
        "window": scene.hidden.window if scene.hidden else [],
        "true_box": [],
    }


def _probe_row(index: int, *, seed: int) -> dict[str, object]:
    phantom = render_phantom("brain", seed, index)
    return {
        "row_kind": "probe",
        "image_png": encode_png(phantom.image),
        "looks": [],
        "answer": phantom.gold_answer,
        "target": [],
        "first_png": None,
        "window": [],
        "true_box": phantom.box.as_tuple(),
    }


def _rows(
    pool: ProcessPoolExecutor,
    scenes: tuple[int, int],
    probes: tuple[int, int],
    found_share: float,
    hidden_share: float,
) -> Iterator[dict[str, object]]:
    """All rows in order, rendered in parallel, from (number, seed) of scenes and of probes."""
    scene = partial(_scene_row, seed=scenes[1], found_share=found_share, hidden_share=hidden_share)
    yield from pool.map(scene, range(scenes[0]), chunksize=32)
    yield from pool.map(partial(_probe_row, seed=probes[1]), range(probes[0]), chunksize=32)


def write_scene_file(
    out: Path,
    *,
    seed: int,
    num_scenes: int,
    num_probes: int,
    probe_seed: int,
    found_share: float,
    hidden_share: float,
    num_processes: int,
) -> None:
    """Render and write the file; the same arguments give the same rows."""
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "format": str(FORMAT),
        "num_scenes": str(num_scenes),
        "question": QUESTION,
        "options": "\n".join(OPTIONS),
        "seed": str(seed),
        "found_share": str(found_share),
        "hidden_share": str(hidden_share),
    }
    schema = _SCHEMA.with_metadata(about)
    held: list[dict[str, object]] = []
    with (
        ProcessPoolExecutor(num_processes) as pool,
        pq.ParquetWriter(out, schema, compression="none") as writer,
    ):
        rows = _rows(pool, (num_scenes, seed), (num_probes, probe_seed), found_share, hidden_share)
        for row in progress(rows, title="scenes", unit="scene", total=num_scenes + num_probes):
            held.append(row)
            if len(held) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(held, schema=schema))
                held.clear()
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema=schema))
