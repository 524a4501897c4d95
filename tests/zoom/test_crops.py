"""Ingest and crops over HTTP: boxes, caching, limits, and the errors a model may cause."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from services.zoom.settings import ZoomSettings
from shared.api.zoom import CropRequest, PixelLimitsModel, WireBox, WireImageSize
from shared.blobs import BlobStore
from shared.clients.zoom import ZoomClient
from shared.errors import ZoomError
from shared.geometry import BadBox, BadBoxReason

Encode = Callable[..., bytes]
Pixels = Callable[[bytes], np.ndarray]
Running = Callable[[ZoomSettings], Any]

LIMITS = PixelLimitsModel(min_pixels=28 * 28, max_pixels=336 * 336)


@pytest.fixture
def picture(encoded: Encode) -> bytes:
    """336 × 224 px of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 336, 3), dtype=np.uint8)
    return encoded(noise, "PNG")


async def test_an_ingested_file_can_be_fetched_and_described(
    zoom: ZoomClient, picture: bytes, pixels: Pixels
) -> None:
    original = await zoom.ingest(picture, "image/tiff")  # the header is not believed
    assert (original.width_px, original.height_px) == (336, 224)
    assert original.source_format == "png"
    png = await zoom.image_bytes(original.image)
    assert np.array_equal(pixels(png), pixels(picture))
    facts = await zoom.facts(original.image)
    assert (facts.width_px, facts.height_px, facts.mode) == (336, 224, "RGB")
    assert facts.num_bytes == len(png)
    assert (await zoom.ingest(picture)).image == original.image


async def test_the_whole_image_is_shown_as_the_models_view(
    zoom: ZoomClient, picture: bytes, pixels: Pixels
) -> None:
    original = await zoom.ingest(picture)
    limits = PixelLimitsModel(min_pixels=28 * 28, max_pixels=168 * 112)
    view = await zoom.crop(CropRequest(image=original.image, limits=limits))
    assert view.box == WireBox(x1=0, y1=0, x2=336, y2=224)
    assert (view.shown_width_px, view.shown_height_px) == (168, 112)
    expected = Image.fromarray(pixels(picture)).resize((168, 112), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels(await zoom.crop_bytes(view.crop)), np.asarray(expected))


async def test_a_box_of_the_view_is_the_same_crop_as_that_of_the_original(
    zoom: ZoomClient, picture: bytes
) -> None:
    image = (await zoom.ingest(picture)).image
    in_view = CropRequest(
        image=image,
        box=[10, 10, 52, 38],
        frame="view",
        view=WireImageSize(width_px=168, height_px=112),
        limits=LIMITS,
    )
    in_original = CropRequest(image=image, box=[20, 20, 104, 76], limits=LIMITS)
    first, second = await zoom.crop(in_view), await zoom.crop(in_original)
    assert first == second
    assert first.box == WireBox(x1=20, y1=20, x2=104, y2=76)
    assert (first.image_width_px, first.image_height_px) == (336, 224)


async def test_the_same_request_gives_the_same_bytes_from_cache_from_disk_and_afresh(
    run_zoom: Running, picture: bytes, tmp_path: Path
) -> None:
    crops: list[bytes] = []
    for name, cache_bytes in (("one", 2**20), ("two", 0)):
        settings = ZoomSettings(
            blob_url=str(tmp_path / name), cache_bytes=cache_bytes, cache_crops=0
        )
        async with run_zoom(settings) as http:
            zoom = ZoomClient("http://zoom", http)
            image = BlobStore(settings.blob_url).put(picture)
            for _ in range(2):
                request = CropRequest(image=image, box=[3.3, 5, 77.7, 99], limits=LIMITS)
                crops.append(await zoom.crop_bytes((await zoom.crop(request)).crop))
    assert len(set(crops)) == 1


async def test_a_small_box_grows_around_its_centre(zoom: ZoomClient, picture: bytes) -> None:
    image = (await zoom.ingest(picture)).image
    crop = await zoom.crop(CropRequest(image=image, box=[100, 100, 104, 104], limits=LIMITS))
    assert crop.box == WireBox(x1=88, y1=88, x2=116, y2=116)
    corner = await zoom.crop(CropRequest(image=image, box=[330, 0, 336, 6], limits=LIMITS))
    assert corner.box == WireBox(x1=308, y1=0, x2=336, y2=28)


@pytest.mark.parametrize(
    ("box", "reason", "message"),
    [
        ([50, 50, 50, 80], BadBoxReason.EMPTY, "x1 < x2"),
        ([80, 50, 50, 80], BadBoxReason.EMPTY, "x1 < x2"),
        ([400, 0, 500, 50], BadBoxReason.OUTSIDE, "outside the image"),
        ([0, 0, 300, 2.5], BadBoxReason.ASPECT_RATIO, "too elongated"),
    ],
)
async def test_a_bad_box_comes_back_with_its_reason_for_the_model(
    zoom: ZoomClient, picture: bytes, box: list[float], reason: BadBoxReason, message: str
) -> None:
    image = (await zoom.ingest(picture)).image
    with pytest.raises(BadBox, match=message) as caught:
        await zoom.crop(CropRequest(image=image, box=box, limits=LIMITS))
    assert caught.value.reason is reason


async def test_an_image_too_elongated_to_show_is_a_bad_box_too(
    zoom: ZoomClient, encoded: Encode
) -> None:
    image = (await zoom.ingest(encoded(np.zeros((1, 300), dtype=np.uint8), "PNG"))).image
    with pytest.raises(BadBox, match="ratio over 200"):
        await zoom.crop(CropRequest(image=image, limits=LIMITS))


async def test_the_bad_box_problem_names_its_reason(
    http: httpx.AsyncClient, zoom: ZoomClient, picture: bytes
) -> None:
    image = (await zoom.ingest(picture)).image
    body = {"image": image, "box": [9, 9, 3, 3], "limits": LIMITS.model_dump()}
    response = await http.post("/v1/crops", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": "Box cannot be cropped",
        "status": 422,
        "detail": "box must have x1 < x2 and y1 < y2",
        "reason": "empty",
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"frame": "view"}, "view: the size of the view"),
        ({"limits": {"min_pixels": 10_000, "max_pixels": 784}}, "min_pixels must not be over"),
        ({"limits": {"min_pixels": 60_000_000, "max_pixels": 64_000_000}}, "at most 1000000"),
        ({"image": "abc"}, "body.image"),
        ({"box": [1, 2, 3]}, "body.box"),
        ({"boxes": []}, "body.boxes"),
    ],
)
async def test_a_bad_request_is_a_zoom_error_that_asking_again_does_not_help(
    run_zoom: Running, tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    async with run_zoom(ZoomSettings(blob_url=str(tmp_path), max_pixels=10**6)) as http:
        body = {"image": "0" * 64, "limits": LIMITS.model_dump(), **change}
        response = await http.post("/v1/crops", json=body)
    assert response.status_code == 422
    assert complaint in response.json()["detail"]
    assert "reason" not in response.json()


async def test_a_crop_that_would_be_shown_too_large_is_refused(
    run_zoom: Running, tmp_path: Path, picture: bytes
) -> None:
    settings = ZoomSettings(blob_url=str(tmp_path), max_pixels=100_000)
    async with run_zoom(settings) as http:
        zoom = ZoomClient("http://zoom", http)
        image = BlobStore(settings.blob_url).put(picture)
        limits = PixelLimitsModel(min_pixels=99_000, max_pixels=64_000_000)
        with pytest.raises(ZoomError, match="at most 100000 pixels are rendered"):
            await zoom.crop(CropRequest(image=image, box=[0, 0, 50, 40], limits=limits))


async def test_an_unknown_image_is_not_found(zoom: ZoomClient) -> None:
    for call in (
        zoom.crop(CropRequest(image="0" * 64, limits=LIMITS)),
        zoom.facts("0" * 64),
        zoom.crop_bytes("0" * 64),
        zoom.image_bytes("not-a-hash"),
    ):
        with pytest.raises(ZoomError, match="404 No such image") as caught:
            await call
        assert not caught.value.is_transient


async def test_a_blob_that_is_no_image_is_not_found(
    zoom: ZoomClient, zoom_settings: ZoomSettings
) -> None:
    weights = BlobStore(zoom_settings.blob_url).put(b"weights")
    for call in (
        zoom.crop(CropRequest(image=weights, limits=LIMITS)),
        zoom.image_bytes(weights),
    ):
        with pytest.raises(ZoomError, match="404"):
            await call


async def test_a_damaged_blob_is_not_shown(
    zoom: ZoomClient, zoom_settings: ZoomSettings, encoded: Encode
) -> None:
    image = BlobStore(zoom_settings.blob_url).put(encoded(np.eye(99, dtype=np.uint8), "PNG"))
    path = Path(BlobStore(zoom_settings.blob_url).path(image))
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(ZoomError, match="damaged"):
        await zoom.crop(CropRequest(image=image, limits=LIMITS))


async def test_crops_carry_a_strong_validator_and_never_go_stale(
    http: httpx.AsyncClient, zoom: ZoomClient, picture: bytes
) -> None:
    image = (await zoom.ingest(picture)).image
    crop = (await zoom.crop(CropRequest(image=image, limits=LIMITS))).crop
    fresh = await http.get(f"/v1/crops/{crop}")
    assert fresh.headers["etag"] == f'"{crop}"'
    assert "immutable" in fresh.headers["cache-control"]
    assert fresh.headers["content-type"] == "image/png"
    for known in (f'"{crop}"', f'"other", W/"{crop}"', "*"):
        again = await http.get(f"/v1/crops/{crop}", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == f'"{crop}"'
    other = await http.get(f"/v1/crops/{crop}", headers={"if-none-match": '"other"'})
    assert other.content == fresh.content
    gone = await http.get("/v1/crops/" + "0" * 64, headers={"if-none-match": "*"})
    assert gone.status_code == 404


async def metric(http: httpx.AsyncClient, line: str) -> float:
    """Value of one line of /metrics; 0 if it is not there."""
    for text in (await http.get("/metrics")).text.splitlines():
        if text.startswith(line + " "):
            return float(text.rsplit(" ", 1)[1])
    return 0.0


async def test_many_callers_at_once_decode_an_original_once(
    run_zoom: Running, tmp_path: Path, picture: bytes
) -> None:
    settings = ZoomSettings(blob_url=str(tmp_path))
    image = BlobStore(settings.blob_url).put(picture)
    async with run_zoom(settings) as http:
        zoom = ZoomClient("http://zoom", http)
        requests = [
            CropRequest(image=image, box=[i, i, i + 50, i + 50], limits=LIMITS) for i in range(8)
        ]
        crops = await asyncio.gather(*[zoom.crop(request) for request in requests])
        assert len({crop.crop for crop in crops}) == 8
        await asyncio.gather(*[zoom.crop(request) for request in requests])
        assert await metric(http, 'medvr_zoom_crops_total{outcome="rendered"}') == 8
        assert await metric(http, 'medvr_zoom_crops_total{outcome="remembered"}') == 8
        assert await metric(http, "medvr_zoom_cache_bytes") == 336 * 224 * 4


async def test_the_cache_holds_no_more_than_its_bytes_and_drops_the_least_recently_used(
    run_zoom: Running, tmp_path: Path, encoded: Encode
) -> None:
    settings = ZoomSettings(blob_url=str(tmp_path), cache_bytes=2 * 64 * 64, cache_crops=0)
    async with run_zoom(settings) as http:
        zoom = ZoomClient("http://zoom", http)
        images = [
            BlobStore(settings.blob_url).put(encoded(np.full((64, 64), level, np.uint8), "PNG"))
            for level in (10, 20, 30)
        ]
        for index in (0, 1, 0, 2, 0, 1):  # 2 drops 1, so the last one is read again
            await zoom.crop(CropRequest(image=images[index], limits=LIMITS))
            assert await metric(http, "medvr_zoom_cache_bytes") <= settings.cache_bytes
        assert await metric(http, 'medvr_zoom_originals_total{found="memory"}') == 2
        assert await metric(http, 'medvr_zoom_originals_total{found="store"}') == 4


async def test_uploads_over_the_limit_are_refused_announced_or_not(
    run_zoom: Running, tmp_path: Path
) -> None:
    async def unannounced() -> Any:
        for _ in range(3):
            yield bytes(500)

    async with run_zoom(ZoomSettings(blob_url=str(tmp_path), max_upload_bytes=1000)) as http:
        for content in (bytes(1500), unannounced()):
            response = await http.post("/v1/images", content=content)
            assert response.status_code == 413
            assert "limit of 1000 bytes" in response.json()["detail"]


async def test_what_is_no_image_is_refused_with_what_is(zoom: ZoomClient) -> None:
    with pytest.raises(ZoomError, match=r"415 .* PNG, JPEG, WebP, TIFF, DICOM and NIfTI"):
        await zoom.ingest(b"%PDF-1.7 ...")
    with pytest.raises(ZoomError, match=r"422 .* body is empty"):
        await zoom.ingest(b"")


async def test_the_event_loop_stays_free_while_an_image_is_decoded(
    zoom: ZoomClient, encoded: Encode
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    ingest = asyncio.ensure_future(zoom.ingest(encoded(noise, "PNG")))
    num_ticks = 0
    while not ingest.done():
        await asyncio.sleep(0.001)
        num_ticks += 1
    assert (await ingest).width_px == 1500
    assert num_ticks > 10


async def test_openapi_describes_the_crop_request(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    schema = paths["/v1/crops"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["limits"]["properties"]["min_pixels"]["minimum"] == 784
    assert set(schema["required"]) == {"image", "limits"}


async def test_ready_when_the_blob_store_answers(http: httpx.AsyncClient) -> None:
    assert (await http.get("/ready")).json() == {"status": "ready"}
    assert (await http.get("/health")).json() == {"status": "alive"}
