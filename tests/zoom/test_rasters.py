"""What becomes of PNG, JPEG, WebP and TIFF files."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from services.zoom.formats import DecodeLimits, detect_format
from services.zoom.sandbox import Sandbox
from shared.errors import ApiProblem
from tests.zoom.files import png_claiming

Encode = Callable[..., bytes]
Pixels = Callable[[bytes], np.ndarray]

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def decoded(sandbox: Sandbox, data: bytes) -> bytes:
    return sandbox.decode(data, detect_format(data)).png


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_files_keep_every_pixel(
    sandbox: Sandbox, encoded: Encode, pixels: Pixels, file_format: str, options: dict[str, object]
) -> None:
    data = encoded(COLOUR, file_format, **options)
    original = sandbox.decode(data, detect_format(data))
    assert np.array_equal(pixels(original.png), COLOUR)
    assert (original.width_px, original.height_px) == (6, 4)
    assert original.source_format == file_format.lower()


def test_a_jpeg_is_what_pillow_decodes(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    data = encoded(COLOUR, "JPEG", quality=90)
    assert np.array_equal(pixels(decoded(sandbox, data)), pixels(data))


def test_grey_stays_grey(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    assert np.array_equal(pixels(decoded(sandbox, encoded(GREY, "PNG"))), GREY)


def test_one_bit_becomes_black_and_white(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    bits = Image.fromarray(GREY > 100)
    expected = np.where(GREY > 100, 255, 0)
    assert np.array_equal(pixels(decoded(sandbox, encoded(bits, "PNG"))), expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_deep_greys_are_stretched_over_what_occurs(
    sandbox: Sandbox, encoded: Encode, pixels: Pixels, file_format: str
) -> None:
    deep = np.array([[1000, 1500], [2000, 3000]], dtype=np.uint16)
    levels = pixels(decoded(sandbox, encoded(deep, file_format)))
    assert levels.dtype == np.uint8
    assert levels.tolist() == [[0, 64], [128, 255]]


def test_float_greys_with_holes_are_stretched_over_what_is_finite(
    sandbox: Sandbox, encoded: Encode, pixels: Pixels
) -> None:
    samples = np.array([[-1.0, 0.0], [1.0, np.nan]], dtype=np.float32)
    assert pixels(decoded(sandbox, encoded(samples, "TIFF"))).tolist() == [[0, 128], [255, 0]]


def test_a_flat_deep_grey_is_black(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    flat = np.full((2, 2), 777, dtype=np.uint16)
    assert pixels(decoded(sandbox, encoded(flat, "PNG"))).tolist() == [[0, 0], [0, 0]]


def test_transparent_pixels_lie_on_black(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], dtype=np.uint8)
    levels = pixels(decoded(sandbox, encoded(rgba, "PNG")))
    assert levels.tolist() == [[[200, 100, 50], [0, 0, 0]]]
    grey = Image.fromarray(np.array([[[200, 255], [200, 0]]], dtype=np.uint8), mode=None)
    assert grey.mode == "LA"
    assert pixels(decoded(sandbox, encoded(grey, "PNG"))).tolist() == [[200, 0]]


def test_a_palette_becomes_its_colours(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    levels = pixels(decoded(sandbox, encoded(image, "PNG")))
    assert levels.tolist() == [[[10, 20, 30], [200, 100, 0]]]
    see_through = encoded(image, "PNG", transparency=0)
    assert pixels(decoded(sandbox, see_through)).tolist() == [[[0, 0, 0], [200, 100, 0]]]


def test_cmyk_becomes_rgb(sandbox: Sandbox, encoded: Encode, pixels: Pixels) -> None:
    image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    levels = pixels(decoded(sandbox, encoded(image, "TIFF")))
    assert levels.tolist() == [[[255, 0, 0]] * 2] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_taken_sideways_is_turned_upright(
    sandbox: Sandbox, encoded: Encode, pixels: Pixels, file_format: str, orientation: int
) -> None:
    """A bright corner, stored as the camera held it, ends at the top left."""
    upright = np.zeros((32, 48), dtype=np.uint8)
    upright[:16, :16] = 255
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, 3),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), file_format, exif=exif, quality=95)
    levels = pixels(decoded(sandbox, data))
    levels = levels if levels.ndim == 2 else levels[..., 0]
    assert levels.shape == (32, 48)
    assert np.abs(levels.astype(int) - upright).max() <= 24


def test_a_damaged_exif_block_does_not_cost_the_picture(
    sandbox: Sandbox, encoded: Encode, pixels: Pixels
) -> None:
    data = encoded(GREY, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert np.array_equal(pixels(decoded(sandbox, data)), GREY)


def test_no_metadata_survives_and_the_same_pixels_give_the_same_bytes(
    sandbox: Sandbox, encoded: Encode
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe, 1970"
    plain = decoded(sandbox, encoded(COLOUR, "PNG"))
    loaded = decoded(
        sandbox, encoded(COLOUR, "PNG", icc_profile=profile, exif=exif, dpi=(300, 300))
    )
    assert loaded == plain
    assert b"Jane" not in loaded
    assert set(chunk_names(plain)) == {b"IHDR", b"IDAT", b"IEND"}
    assert decoded(sandbox, encoded(COLOUR, "TIFF")) == plain


def chunk_names(png: bytes) -> list[bytes]:
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += 12 + length
    return names


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "duration": 100})],
)
def test_several_frames_are_refused_with_their_number(
    sandbox: Sandbox, encoded: Encode, file_format: str, options: dict[str, object]
) -> None:
    frames = [
        Image.fromarray(COLOUR),
        Image.fromarray(COLOUR[::-1].copy()),
        Image.new("RGB", (6, 4)),
    ]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(ApiProblem, match=f"the {file_format} file has 3 frames") as caught:
        decoded(sandbox, data)
    assert caught.value.status == 422


def test_a_jpeg_with_further_pictures_is_its_first(
    sandbox: Sandbox, encoded: Encode, pixels: Pixels
) -> None:
    first, second = Image.fromarray(COLOUR), Image.new("RGB", (6, 4))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.array_equal(
        pixels(decoded(sandbox, data)), pixels(encoded(first, "JPEG", quality=95))
    )


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "PPM", "ICO"])
def test_other_formats_are_refused_by_content(encoded: Encode, file_format: str) -> None:
    with pytest.raises(ApiProblem, match="PNG, JPEG, WebP, TIFF") as caught:
        detect_format(encoded(COLOUR, file_format))
    assert caught.value.status == 415


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_file_is_refused(sandbox: Sandbox, encoded: Encode, file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, file_format)
    with pytest.raises(ApiProblem, match=f"the {file_format} file cannot be decoded") as caught:
        decoded(sandbox, data[: len(data) // 2])
    assert caught.value.status == 422


def test_the_pixel_limit_holds_before_decoding(sandbox: Sandbox) -> None:
    with pytest.raises(ApiProblem, match=r"100000x100000 px, at most 4000000") as caught:
        decoded(sandbox, png_claiming(100_000, 100_000))
    assert caught.value.status == 413


def test_a_decoder_that_needs_too_much_memory_is_stopped_and_the_next_file_decodes(
    encoded: Encode, pixels: Pixels
) -> None:
    greedy = np.zeros((2500, 2500), dtype=np.uint16)  # stretching it takes over 50 MiB
    sandbox = Sandbox(DecodeLimits(max_pixels=10**8, memory_bytes=2**25, timeout_s=20.0))
    try:
        with pytest.raises(ApiProblem, match="more memory than one image may use") as caught:
            decoded(sandbox, encoded(greedy, "PNG"))
        assert caught.value.status == 413
        assert np.array_equal(pixels(decoded(sandbox, encoded(GREY, "PNG"))), GREY)
    finally:
        sandbox.close()


def test_a_decoder_that_takes_too_long_is_killed_and_the_next_file_decodes(
    encoded: Encode, pixels: Pixels
) -> None:
    slow = png_claiming(20_000, 20_000, bits=1, body=bytes(20_000 * 2_501))  # takes seconds
    sandbox = Sandbox(DecodeLimits(max_pixels=10**9, memory_bytes=2**32, timeout_s=0.5))
    try:
        with pytest.raises(ApiProblem, match="the decoder gave up on this file") as caught:
            decoded(sandbox, slow)
        assert caught.value.status == 422
        assert np.array_equal(pixels(decoded(sandbox, encoded(GREY, "PNG"))), GREY)
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"RIFF1234WEBP"]
)
def test_a_magic_number_alone_is_no_image(sandbox: Sandbox, data: bytes) -> None:
    with pytest.raises(ApiProblem) as caught:
        decoded(sandbox, data)
    assert caught.value.status in (415, 422)


def test_what_pillow_reads_from_the_canonical_png_has_no_surprises(
    sandbox: Sandbox, encoded: Encode
) -> None:
    with Image.open(io.BytesIO(decoded(sandbox, encoded(COLOUR, "JPEG")))) as image:
        assert image.mode == "RGB"
        assert image.info == {}
