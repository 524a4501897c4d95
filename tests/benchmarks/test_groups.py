"""Recorded groups: what is in the files, and what may be changed about them."""

from pathlib import Path

import pytest

from benchmarks.groups import MadeUp, Recorded, Shape, part_of, with_view
from benchmarks.recording import FOLDER, Recording, shown_images
from benchmarks.services import TRAINED
from shared.blobs import BlobStore
from shared.errors import BlobError
from shared.geometry import ImageSize
from shared.trajectory import TrajectoryGroup

NAMES = sorted(path.stem for path in FOLDER.glob("*.zip"))


def read(name: str) -> Recording:
    return Recording.read(FOLDER / f"{name}.zip")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


def lineage(group: TrajectoryGroup) -> dict[str, str | None]:
    return {t.trajectory_id: t.parent_id for t in group.trajectories}


def test_the_recordings_are_those_that_the_benchmark_reads() -> None:
    assert NAMES == ["demo", "large", "start"]
    assert [len(read(name).groups) for name in NAMES] == [4, 1, 1]
    assert [len(read(name).groups[0].trajectories) for name in NAMES] == [16, 32, 16]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_holds_groups_of_evr_with_signal_and_all_their_images(name: str) -> None:
    recording = read(name)
    assert recording.made_by.startswith("python -m benchmarks.record --groups")
    shown: set[str] = set()
    for group in recording.groups:
        num_branches = sum(parent is not None for parent in lineage(group).values())
        assert num_branches == len(group.trajectories) / 2
        assert len({t.reward.total for t in group.trajectories if t.reward}) > 1
        assert any(turn.call and turn.call.crop for t in group.trajectories for turn in t.turns)
        shown |= {span.image for span in shown_images(group)}
    assert shown == set(recording.blobs)


def test_what_is_read_is_what_was_written_to_the_byte(tmp_path: Path) -> None:
    read("large").write(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (FOLDER / "large.zip").read_bytes()


def test_a_damaged_image_is_noticed(tmp_path: Path) -> None:
    recording = read("large")
    name = next(iter(recording.blobs))
    recording.blobs[name] += b"more"
    recording.write(tmp_path / "damaged.zip")
    with pytest.raises(BlobError, match=name):
        Recording.read(tmp_path / "damaged.zip")


def test_a_larger_view_changes_the_view_and_nothing_else(blobs: BlobStore) -> None:
    (group,) = Recorded("large", 1).groups(TRAINED, blobs)
    larger = with_view(group, 336, blobs)
    assert larger.view_size == ImageSize(336, 336)
    before, view, after = larger.prompt
    assert (before, after) == (group.prompt[0], group.prompt[2])
    assert len(view.token_ids) == 2 + 12 * 12
    assert view.token_ids[0] == group.prompt[1].token_ids[0]
    assert set(view.token_ids[1:-1]) == {group.prompt[1].token_ids[1]}
    assert view.token_ids[-1] == group.prompt[1].token_ids[-1]
    assert larger.trajectories == group.trajectories


@pytest.mark.parametrize("group_size", [1, 2, 5, 8, 32])
def test_a_part_of_a_group_has_every_parent_of_its_branches(
    group_size: int, blobs: BlobStore
) -> None:
    (group,) = Recorded("large", 1).groups(TRAINED, blobs)
    part = part_of(group, group_size)
    assert len(part.trajectories) == group_size
    parents = lineage(part)
    assert {parent for parent in parents.values() if parent} <= set(parents)
    assert sum(parent is not None for parent in parents.values()) == group_size // 2
    order = [t for t in lineage(group) if t in parents]
    assert list(parents) == order, "parents come before their branches"


def test_made_up_groups_have_the_shape_asked_for(blobs: BlobStore) -> None:
    shape = Shape(view_px=112, crop_px=56, group_size=6, num_zooms=2, thought_words=5)
    first, second = MadeUp(shape, 2).groups(TRAINED, blobs)
    assert first.group_id != second.group_id
    assert first.view_size == ImageSize(112, 112)
    assert [len(t.turns) for t in first.trajectories] == [3] * 6
    assert sum(parent is not None for parent in lineage(first).values()) == 3
