"""Scenes: deterministic, and only a part of what is imitated goes to the target."""

from math import hypot
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from services.problems.scene_file import write_scene_file
from services.problems.scenes import BOX_PX, GRID_PX, VIEW_PX, render_scene
from shared.render import encode_png


def test_a_scene_is_the_same_from_the_same_seed() -> None:
    once, again = render_scene(0, 4, 0.4), render_scene(0, 4, 0.4)
    assert encode_png(once.view) == encode_png(again.view)
    assert [look.bbox_2d for look in once.looks] == [look.bbox_2d for look in again.looks]


def test_boxes_lie_on_the_grid_inside_the_view_and_have_one_size() -> None:
    for index in range(12):
        for look in render_scene(1, index, 0.5).looks:
            x1, y1, x2, y2 = look.bbox_2d
            assert (x2 - x1, y2 - y1) == (BOX_PX, BOX_PX)
            assert min(x1, y1) >= 0
            assert max(x2, y2) <= VIEW_PX
            assert x1 % GRID_PX == y1 % GRID_PX == 0
            assert look.crop.size == (168, 168)


def distances_from_target(found_share: float) -> list[float]:
    distances = []
    for index in range(12):
        scene = render_scene(2, index, found_share)
        for look in scene.looks:
            x1, y1, x2, y2 = look.bbox_2d
            off_x, off_y = (x1 + x2) / 2 - scene.target[0], (y1 + y2) / 2 - scene.target[1]
            distances.append(hypot(off_x, off_y))
    return distances


def test_looks_go_near_the_target_as_often_as_they_should() -> None:
    assert median(distances_from_target(1.0)) < 15
    assert median(distances_from_target(0.0)) > 35


def test_a_scene_file_holds_the_same_rows_whatever_the_number_of_processes(tmp_path: Path) -> None:
    tables = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.parquet"
        write_scene_file(
            out,
            seed=0,
            num_scenes=6,
            num_probes=2,
            probe_seed=2,
            found_share=0.4,
            hidden_share=0.3,
            num_processes=processes,
        )
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])
    assert tables[0]["row_kind"].to_pylist() == ["scene"] * 6 + ["probe"] * 2
    assert len(tables[0]["true_box"][7]) == 4
