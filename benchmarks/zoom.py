"""`python -m benchmarks.zoom`: crops of one large image through the real service, against Pillow.

The service runs in its own process and is asked over HTTP, as the rollout workers ask it; every
box is another one, so nothing is answered from memory but the decoded original. Plain Pillow opens
the same PNG, crops, resizes and encodes it with the same functions, for the same boxes in turns;
the bytes of both must be the same. Then 32 callers at a time, for the tail of the latencies.
"""

import argparse
import asyncio
import io
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.outcome import Figure, Outcome, make_outcome, print_outcome
from benchmarks.pairs import Pairs, measure_pairs
from benchmarks.services import FOLDER, benchmark_stack
from shared.api.zoom import CropRequest, PixelLimitsModel
from shared.blobs import sha256_hex
from shared.clients.zoom import ZoomClient
from shared.geometry import Box, PixelLimits
from shared.progress import progress
from shared.render import encode_png, show_region

AIM = ">= 5"
LIMITS = PixelLimits(28 * 28 * 4, 448 * 448)
"""Of a shown crop; enlarging and shrinking both occur."""


def draw_picture(side_px: int, seed: int) -> Image.Image:
    """A smooth picture with fine noise: as hard to compress as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC)
    noise = rng.integers(0, 5, (side_px, side_px, 1), dtype=np.uint8)
    return Image.fromarray(np.asarray(smooth) // 2 + 60 + noise)


def draw_boxes(side_px: int, num_boxes: int, seed: int) -> list[Box]:
    """Boxes of a 64th to a quarter of the side, all different."""
    rng = np.random.default_rng([seed, 1])
    boxes: dict[Box, None] = {}
    while len(boxes) < num_boxes:
        width, height = rng.integers(max(28, side_px // 64), side_px // 4, 2).tolist()
        x, y = rng.integers(0, side_px - width), rng.integers(0, side_px - height)
        boxes[Box(int(x), int(y), int(x) + width, int(y) + height)] = None
    return list(boxes)


def crop_request(image: str, box: Box) -> CropRequest:
    """What an environment sends."""
    return CropRequest(
        image=image,
        box=[float(c) for c in box.as_tuple()],
        limits=PixelLimitsModel(min_pixels=LIMITS.min_pixels, max_pixels=LIMITS.max_pixels),
    )


def crop_with_pillow(png: bytes, box: Box) -> bytes:
    """Open, crop, resize, encode."""
    with Image.open(io.BytesIO(png)) as image:
        return encode_png(show_region(image, box, LIMITS))


class Measurement:
    """One image in a running service, and its crops both ways."""

    def __init__(self, zoom: ZoomClient, png: bytes, image: str, boxes: Sequence[Box]) -> None:
        self._zoom = zoom
        self._png = png
        self._image = image
        self._boxes = iter(boxes)
        self._paired: dict[int, Box] = {}

    def _box_of(self, repeat: int) -> Box:
        if repeat not in self._paired:
            self._paired[repeat] = next(self._boxes)
        return self._paired[repeat]

    async def by_service(self, repeat: int) -> float:
        """Seconds for one crop over HTTP."""
        request = crop_request(self._image, self._box_of(repeat))
        started = time.perf_counter()
        await self._zoom.crop(request)
        return time.perf_counter() - started

    async def by_pillow(self, repeat: int) -> float:
        """Seconds for the same without the service."""
        started = time.perf_counter()
        crop_with_pillow(self._png, self._box_of(repeat))
        return time.perf_counter() - started

    async def check_same_bytes(self) -> bool:
        """Whether both ways give the same PNG, for one more box."""
        box = next(self._boxes)
        answer = await self._zoom.crop(crop_request(self._image, box))
        return answer.crop == sha256_hex(crop_with_pillow(self._png, box))

    async def under_load(self, num_requests: int, num_callers: int) -> tuple[list[float], float]:
        """Latencies, and seconds in all, of crops asked for by so many callers at a time."""
        waiting = iter(progress(range(num_requests), title=f"{num_callers} callers", unit="crop"))
        latencies: list[float] = []

        async def caller() -> None:
            for _ in waiting:
                request = crop_request(self._image, next(self._boxes))
                started = time.perf_counter()
                await self._zoom.crop(request)
                latencies.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(num_callers)))
        return latencies, time.perf_counter() - started


async def measure(
    zoom: ZoomClient, png: bytes, boxes: Sequence[Box], args: argparse.Namespace
) -> tuple[Pairs, list[float], float]:
    """Pillow over service in turns; then the latencies under load. Raises if bytes differ."""
    stored = await zoom.ingest(png, "image/png")
    measurement = Measurement(zoom, png, stored.image, boxes)
    if not await measurement.check_same_bytes():
        raise SystemExit("error: the service and Pillow gave different bytes for the same box")
    pairs = await measure_pairs(
        measurement.by_pillow, measurement.by_service, repeats=args.repeats, title="one caller"
    )
    return pairs, *await measurement.under_load(args.requests, args.callers)


def run(args: argparse.Namespace) -> Outcome:
    """Start zoom, measure, stop it."""
    png = encode_png(draw_picture(args.side, args.seed))
    boxes = draw_boxes(args.side, 1 + args.repeats + args.requests, args.seed)

    async def all_measurements(url: str) -> tuple[Pairs, list[float], float]:
        zoom = ZoomClient(url)
        try:
            return await measure(zoom, png, boxes, args)
        finally:
            await zoom.aclose()

    with benchmark_stack("zoom", args.folder) as (stack, lines):
        # An earlier run left the same crops there, and storing them again would be free.
        shutil.rmtree(lines.paths.blobs, ignore_errors=True)
        stack.start(lines.zoom())
        pairs, latencies, seconds = asyncio.run(all_measurements(lines.zoom_url))
    pillow_s, service_s = pairs.times()
    p50_s, p99_s = np.quantile(latencies, [0.5, 0.99]).tolist()
    return make_outcome(
        Figure("zoom", pairs.ratio().median, "x plain Pillow", AIM),
        also=[Figure(f"zoom p99, {args.callers} callers", 1e3 * p99_s, "ms")],
        detail={
            "image": f"{args.side} x {args.side}, {len(png) / 2**20:.0f} MiB as PNG",
            "ratio": pairs.ratio().as_list(),
            "pillow_ms": [1e3 * s for s in pillow_s.as_list()],
            "service_ms": [1e3 * s for s in service_s.as_list()],
            "repeats": args.repeats,
            "callers": args.callers,
            "p50_ms": 1e3 * p50_s,
            "p99_ms": 1e3 * p99_s,
            "worst_ms": 1e3 * max(latencies),
            "crops_per_s": len(latencies) / seconds,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.zoom", description=__doc__)
    parser.add_argument("--side", type=int, default=4096, help="pixels of the image's side")
    parser.add_argument("--repeats", type=int, default=30, help="crops in turns with Pillow")
    parser.add_argument("--requests", type=int, default=512, help="crops under load")
    parser.add_argument("--callers", type=int, default=32, help="callers at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    print_outcome(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
