"""The other region to blank: of the same shape, inside the image, off the evidence."""

import time

from hypothesis import assume, given
from hypothesis import strategies as st

from services.clinic.elsewhere import place_elsewhere
from shared.geometry import Box, ImageSize


def pixels(region: list[Box]) -> set[tuple[int, int]]:
    return {(x, y) for b in region for x in range(b.x1, b.x2) for y in range(b.y1, b.y2)}


@st.composite
def regions(draw: st.DrawFn) -> list[Box]:
    boxes = draw(
        st.lists(
            st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 14)] * 2), min_size=1, max_size=4
        )
    )
    return [Box(x, y, x + width, y + height) for x, y, width, height in boxes]


@given(regions(), st.integers(0, 2**53))
def test_the_other_region_is_the_same_shape_moved_off_the_evidence(region: list[Box], seed: int):
    size = ImageSize(64, 64)
    placed = place_elsewhere(region, size, seed)
    assume(placed is not None)
    assert placed is not None

    by_x, by_y = placed[0].x1 - region[0].x1, placed[0].y1 - region[0].y1
    assert pixels(placed) == {(x + by_x, y + by_y) for x, y in pixels(region)}
    assert not pixels(placed) & pixels(region)
    assert all(0 <= x < 64 and 0 <= y < 64 for x, y in pixels(placed))
    assert placed == place_elsewhere(region, size, seed)


def test_where_there_is_no_room_none_is_found():
    assert place_elsewhere([Box(10, 0, 50, 60)], ImageSize(60, 60), 1) is None


def test_a_narrow_gap_is_found_and_other_seeds_go_elsewhere():
    region = [Box(0, 0, 30, 60)]
    assert place_elsewhere(region, ImageSize(60, 60), 1) == [Box(30, 0, 60, 60)]
    small = [Box(0, 0, 5, 5)]
    placed = {place_elsewhere(small, ImageSize(300, 300), seed)[0] for seed in range(20)}  # type: ignore[index]
    assert len(placed) == 20


def test_a_region_of_many_rectangles_that_has_no_room_takes_no_time():
    comb = [Box(700 + 2 * n, 1, 701 + 2 * n, 3) for n in range(100)]
    began_s = time.process_time()
    assert place_elsewhere([*comb, Box(0, 100, 690, 1000)], ImageSize(1024, 1024), 1) is None
    assert time.process_time() - began_s < 0.5  # 0.005; 1.3 if every pair is compared
