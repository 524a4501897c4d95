"""Phantoms: the same from the same seed; place in the view, kind only in the crop."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.problems.lesions import KINDS
from services.problems.phantoms import OPTIONS, Phantom, render_phantom
from shared.geometry import Box, ImageSize, PixelLimits
from shared.render import encode_png, show_region

LIMITS = PixelLimits(168 * 168, 168 * 168)


def shown(phantom: Phantom, box: Box) -> NDArray[np.float64]:
    return np.asarray(show_region(phantom.image, box, LIMITS).convert("L"), dtype=np.float64)


def view_of(phantom: Phantom) -> NDArray[np.float64]:
    return shown(phantom, Box.whole(ImageSize(*phantom.image.size)))


def crop_of(phantom: Phantom) -> NDArray[np.float64]:
    left, top = (min(max(0, c - 42), 336 - 84) for c in (phantom.lesion.x, phantom.lesion.y))
    return shown(phantom, Box(left, top, left + 84, top + 84))


def power(patch: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log power spectrum: what tells patterns apart whatever their phase."""
    window = np.outer(np.hanning(patch.shape[0]), np.hanning(patch.shape[1]))
    return np.log1p(np.abs(np.fft.rfft2((patch - patch.mean()) * window))).ravel()


def probed_accuracy(features: NDArray[np.float64], kinds: NDArray[np.int64]) -> float:
    """A ridge classifier trained on the first three quarters, tested on the rest."""
    cut = len(kinds) * 3 // 4
    scaled = (features - features[:cut].mean(0)) / (features[:cut].std(0) + 1e-6)
    gram = scaled[:cut] @ scaled.T
    targets = np.eye(len(KINDS))[kinds[:cut]] - 1 / len(KINDS)
    weights = np.linalg.solve(gram[:, :cut] + 30 * np.eye(cut), targets)
    return float((np.argmax(gram[:, cut:].T @ weights, 1) == kinds[cut:]).mean())


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [render_phantom("brain", 7, index) for index in range(360)]


@pytest.mark.parametrize("modality", ["brain", "retina", "ct"])
def test_a_phantom_is_the_same_from_the_same_seed(modality: str) -> None:
    once, again = (encode_png(render_phantom(modality, 3, 5).image) for _ in range(2))
    assert once == again
    assert once != encode_png(render_phantom(modality, 3, 6).image)


def test_there_are_at_least_six_kinds_and_all_occur(phantoms: list[Phantom]) -> None:
    assert OPTIONS == KINDS
    assert len(set(KINDS)) >= 6
    counts = np.bincount([p.lesion.kind for p in phantoms], minlength=len(KINDS))
    assert counts.min() > len(phantoms) / len(KINDS) / 2
    assert phantoms[0].gold_answer == "ABCDEFGH"[phantoms[0].lesion.kind]


def test_the_place_shows_in_the_view(phantoms: list[Phantom]) -> None:
    for phantom in phantoms[:60]:
        view = view_of(phantom)
        y, x = np.unravel_index(view.argmax(), view.shape)
        assert phantom.box.contains(2 * int(x) + 0.5, 2 * int(y) + 0.5)


def test_the_kind_is_at_chance_in_the_view_and_plain_in_the_crop(phantoms: list[Phantom]) -> None:
    kinds = np.array([p.lesion.kind for p in phantoms])
    in_view, in_crop = [], []
    for phantom in phantoms:
        x, y = phantom.lesion.x // 2, phantom.lesion.y // 2
        view = np.pad(view_of(phantom), 10, mode="edge")
        in_view.append(view[y : y + 20, x : x + 20])
        in_crop.append(power(crop_of(phantom)[40:128, 40:128]))
    raw = np.array([patch.ravel() for patch in in_view])
    assert probed_accuracy(raw, kinds) < 0.33
    assert probed_accuracy(np.array([power(p) for p in in_view]), kinds) < 0.33
    assert probed_accuracy(np.array(in_crop), kinds) > 0.95


def test_the_view_of_a_lesion_is_the_same_whatever_its_kind() -> None:
    from dataclasses import replace

    from services.problems.lesions import Lesion, draw_lesion, to_image

    lesion = Lesion(161, 150, 14, 0.72, 0.2, 0, (0.3, 1.1))
    plain = to_image(draw_lesion(np.full((336, 336, 3), 0.4), lesion))
    view = np.asarray(show_region(plain, Box(0, 0, 336, 336), LIMITS), dtype=int)
    for kind in range(1, len(KINDS)):
        other = to_image(draw_lesion(np.full((336, 336, 3), 0.4), replace(lesion, kind=kind)))
        assert np.abs(np.asarray(other, dtype=int) - np.asarray(plain, dtype=int)).max() > 40
        other_view = np.asarray(show_region(other, Box(0, 0, 336, 336), LIMITS), dtype=int)
        assert np.abs(other_view - view).max() <= 2
