"""The tools of the policy, each in one place: how it is described, read, and answered.

A tool is an entry of `TOOLS`; nothing else knows tools by name. The prompt describes the tools a
policy's manifest lists, the parser reads calls of those alone, and the environment shows what a
tool's `plan` says. Every argument in `Tool.arguments` is needed, and its place in the text counts:
H_tool runs from the first character of the argument written first (for a list, of its first
number) through the last of the argument written last, and a fork is cut before the first.

What a trajectory looks through is state of the trajectory: `set_window` sets the window, every
later `zoom_in` shows its crop in it, and each call's record says in which one.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from shared.agent.opened import OpenedProblem
from shared.api.zoom import MAX_WINDOW, CropRequest, PixelLimitsModel, WireImageSize, WireWindow
from shared.errors import WeightsError
from shared.geometry import Box, ImageSize, PixelLimits, place_box, smart_resize, view_to_original
from shared.trajectory import Bbox, WindowArguments


class UnknownTool(WeightsError):
    """A policy's manifest names a tool that there is not."""


class BadArguments(Exception):
    """Arguments that are not what a tool takes."""


class BadWindow(ValueError):
    """A window that cannot be shown; the message is fit to be shown to the policy."""


class ZoomArguments(msgspec.Struct, frozen=True):
    """Of `zoom_in`."""

    bbox_2d: Bbox
    """As written: x1, y1, x2, y2 in pixels of the view; finite, otherwise unchecked."""


Arguments = ZoomArguments | WindowArguments


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that answers a call: what is asked of zoom, and what is said of it."""

    request: CropRequest
    shown_size: ImageSize
    caption: str
    box: Box | None = None
    """The region it was asked to show, as it will be cropped: original pixels. None: the whole
    image, which is no place and does not count for CCA."""
    window: WindowArguments | None = None
    """What it is shown in; None: as the original is."""


@dataclass(frozen=True)
class Tool:
    """All that is known of one tool."""

    name: str
    description: str
    parameters: dict[str, object]
    """JSON schema by name of argument."""
    usage: str
    """What the policy is told when it gives other arguments."""
    caption: str
    """What it is told of a picture, around some arguments: for the digest of the wording."""
    read: Callable[[dict[str, object]], Arguments]
    """Arguments from their JSON. Raises `BadArguments`."""
    plan: Callable[[Arguments, OpenedProblem, WindowArguments | None], Look]
    """The picture that answers a call, while a window is in force. Raises `BadBox`, `BadWindow`."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.parameters)

    @property
    def schema(self) -> dict[str, object]:
        """As the policy is told of it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": self.parameters,
                    "required": list(self.arguments),
                },
            },
        }

    def call_text(self, **arguments: object) -> str:
        """A well-formed call, as the policy writes it (for supervised scenes and tests)."""
        written = json.dumps(arguments)
        return f'<tool_call>{{"name": "{self.name}", "arguments": {written}}}</tool_call>'


def finite(value: object) -> float:
    """A finite JSON number; `true` is not one. Raises `BadArguments`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadArguments
    try:
        number = float(value)
    except OverflowError:
        raise BadArguments from None
    if not math.isfinite(number):
        raise BadArguments
    return number


# -- zoom_in --------------------------------------------------------------------------------------


def _read_zoom(arguments: dict[str, object]) -> ZoomArguments:
    values = arguments.get("bbox_2d")
    if not isinstance(values, list) or len(cast("list[object]", values)) != 4:
        raise BadArguments
    x1, y1, x2, y2 = (finite(value) for value in cast("list[object]", values))
    return ZoomArguments((x1, y1, x2, y2))


def format_bbox(bbox_2d: Sequence[float]) -> str:
    """`[x1, y1, x2, y2]`, whole numbers without a decimal point."""
    return "[" + ", ".join(f"{c:g}" for c in bbox_2d) + "]"


def zoom_caption(bbox_2d: Sequence[float]) -> str:
    """What is said of a crop; `bbox_2d` as the policy wrote it."""
    return f"zoomed view of {format_bbox(bbox_2d)}"


def _plan_zoom(arguments: Arguments, opened: OpenedProblem, window: WindowArguments | None) -> Look:
    bbox_2d = cast(ZoomArguments, arguments).bbox_2d
    corners = view_to_original(bbox_2d, opened.view_size, opened.image_size)
    box = place_box(corners, opened.image_size, opened.limits.min_side_px)
    view = opened.view_size
    return Look(
        request=CropRequest.model_construct(
            image=opened.image,
            box=list(bbox_2d),
            frame="view",
            view=WireImageSize(width_px=view.width_px, height_px=view.height_px),
            limits=_wire_limits(opened.limits.crop),
            min_side_px=opened.limits.min_side_px,
            window=_wire_window(window),
        ),
        shown_size=smart_resize(ImageSize(box.width_px, box.height_px), opened.limits.crop),
        caption=zoom_caption(bbox_2d),
        box=box,
        window=window,
    )


ZOOM_IN = Tool(
    name="zoom_in",
    description="Look closer: returns the region of the original image inside the box.",
    parameters={
        "bbox_2d": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": "[x1, y1, x2, y2] in pixels of the image as shown.",
        }
    },
    usage="arguments must be a bbox_2d of four numbers",
    caption=zoom_caption([0, 0, 0, 0]),
    read=_read_zoom,
    plan=_plan_zoom,
)


# -- set_window -----------------------------------------------------------------------------------


def _read_window(arguments: dict[str, object]) -> WindowArguments:
    return WindowArguments(finite(arguments.get("center")), finite(arguments.get("width")))


def window_caption(window: WindowArguments) -> str:
    """What is said of the image in a window."""
    return f"image in the window of center {window.center:g}, width {window.width:g}"


def _plan_window(arguments: Arguments, opened: OpenedProblem, _: WindowArguments | None) -> Look:
    window = cast(WindowArguments, arguments)
    if window.width <= 0:
        raise BadWindow("width must be over 0")
    if abs(window.center) > MAX_WINDOW or window.width > MAX_WINDOW:
        raise BadWindow(f"center and width must be at most {MAX_WINDOW:.0f}")
    return Look(
        request=CropRequest.model_construct(
            image=opened.image,
            box=None,
            frame="original",
            view=None,
            limits=_wire_limits(opened.limits.view),
            min_side_px=opened.limits.min_side_px,
            window=_wire_window(window),
        ),
        shown_size=opened.view_size,
        caption=window_caption(window),
        window=window,
    )


SET_WINDOW = Tool(
    name="set_window",
    description="Show the image in another grey-level window; later crops are shown in it too.",
    parameters={
        "center": {"type": "number", "description": "Middle of the window; CT: in HU."},
        "width": {"type": "number", "description": "From black to white, over 0."},
    },
    usage="arguments must be the numbers center and width",
    caption=window_caption(WindowArguments(0.0, 1.0)),
    read=_read_window,
    plan=_plan_window,
)


def _wire_limits(limits: PixelLimits) -> PixelLimitsModel:
    return PixelLimitsModel.model_construct(
        min_pixels=limits.min_pixels, max_pixels=limits.max_pixels
    )


def _wire_window(window: WindowArguments | None) -> WireWindow | None:
    return None if window is None else WireWindow(center=window.center, width=window.width)


# -- all of them ----------------------------------------------------------------------------------

TOOLS = {tool.name: tool for tool in (ZOOM_IN, SET_WINDOW)}
"""Every tool there is, by name."""


def tools_named(names: Sequence[str]) -> tuple[Tool, ...]:
    """The tools of a policy, in the order of its manifest. Raises `UnknownTool`."""
    for name in names:
        if name not in TOOLS:
            raise UnknownTool(f"there is no tool {name!r}; the tools are {', '.join(TOOLS)}")
    return tuple(TOOLS[name] for name in names)
