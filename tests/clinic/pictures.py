"""Images whose every place looks different, so that a crop from the wrong place is noticed."""

import io

from PIL import Image


def picture(width_px: int = 336, height_px: int = 336) -> Image.Image:
    """Red grows to the right, green downwards, blue in squares of 16 px."""
    image = Image.new("RGB", (width_px, height_px))
    image.putdata(
        [
            (x * 255 // width_px, y * 255 // height_px, 255 * ((x // 16 + y // 16) % 2))
            for y in range(height_px)
            for x in range(width_px)
        ]
    )
    return image


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
