"""zoom and cca as processes: started as users start them, spoken to over loopback, stopped."""

import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from shared.api.cca import ScoredAttempt, ScoreRequest
from shared.api.zoom import CropRequest, PixelLimitsModel, WireImageSize
from shared.clients.cca import CcaClient
from shared.clients.zoom import ZoomClient
from shared.problem import AnswerKind
from tests.processes import running


async def test_zoom_serves_over_loopback_and_stops_on_sigterm(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    blobs = str(tmp_path / "blobs")
    with running("zoom", free_port(), tmp_path, "--blob-url", blobs) as zoom_process:
        buffer = io.BytesIO()
        Image.new("RGB", (60, 40), (10, 20, 30)).save(buffer, "PNG")
        zoom = ZoomClient(zoom_process.url)
        original = await zoom.ingest(buffer.getvalue())
        limits = PixelLimitsModel(min_pixels=784, max_pixels=784)
        crop = await zoom.crop(CropRequest(image=original.image, box=[0, 0, 28, 28], limits=limits))
        with Image.open(io.BytesIO(await zoom.crop_bytes(crop.crop))) as shown:
            assert shown.size == (28, 28)
            assert shown.getpixel((5, 5)) == (10, 20, 30)
        await zoom.aclose()
        log = zoom_process.stop()
        assert log[-1]["service"] == "zoom"
        assert any("shutdown complete" in str(line["message"]) for line in log)


async def test_cca_serves_over_loopback_and_stops_on_sigterm(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    with running("cca", free_port(), tmp_path) as cca_process:
        cca = CcaClient(cca_process.url)
        response = await cca.score(
            ScoreRequest(
                gold_answer="yes",
                answer_kind=AnswerKind.YES_NO,
                image_size=WireImageSize(width_px=10, height_px=10),
                attempts=[
                    ScoredAttempt(
                        trajectory_id="t",
                        answer="yes",
                        is_well_formed=True,
                        all_calls_parsed=True,
                    )
                ],
            )
        )
        assert response.rewards[0].total == 1.0
        await cca.aclose()
        log = cca_process.stop()
        assert any("shutdown complete" in str(line["message"]) for line in log)
        assert "yes" not in json.dumps(log)
