"""A word planted wherever a file or a form can hold one is found in nothing that the system keeps.

Zoom, cca and the clinic are processes that log at DEBUG. The word stands in every text element of
a DICOM file, in the metadata of the other formats, in file names, questions, choices and keys, and
where it makes requests fail. Afterwards every byte is looked through: logs, metrics, blobs, the
database of the cases, event streams, and what the policy was sent. It is in the database of the
pseudonyms alone. A second word, in the question about a file that names nobody, shows the limit:
it is in the case and goes to the policy, and nowhere else.
"""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
from PIL import Image, PngImagePlugin

from shared.blobs import BlobStore
from tests.clinic.conftest import served
from tests.clinic.jobs import everything_in, until
from tests.clinic.pictures import picture
from tests.clinic.scripted_policy import ScriptedPolicy, answer, look, scripted_app
from tests.zoom.files import canary_dataset, dataset_of, file_of, nifti_of, patched

CANARY = "ZQXCANARY7"
FREE = "quetzalcoatlus"
START_S = 60.0


class Process:
    """A service as a process, its log in a file."""

    def __init__(
        self, folder: Path, service: str, port: int, port_flag: str = "port", **settings: str
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{service}.log"
        options = {port_flag: str(port), "log-level": "DEBUG"} | settings
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        command = [sys.executable, "-m", "services", service, *flags]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", trust_env=False).text

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=30)


class Hospital:
    """The processes, and all that they were seen to say."""

    def __init__(
        self, folder: Path, free_port: Callable[[], int], policy: ScriptedPolicy, redis_url: str
    ) -> None:
        self.folder, self.policy, self.redis_url = folder, policy, redis_url
        blobs = {"blob-url": str(folder / "blobs")}
        self.zoom = Process(folder, "zoom", free_port(), **blobs)
        self.cca = Process(folder, "cca", free_port())
        urls = {"zoom-url": self.zoom.url, "cca-url": self.cca.url, "policy-url": policy.url}
        database = str(folder / "clinic.sqlite")
        self.clinic = Process(
            folder,
            "clinic",
            free_port(),
            **blobs,
            **urls,
            **{"database": database, "patience-s": "0", "redis-url": redis_url},
        )
        queue = {"redis-url": redis_url, "clinic-url": self.clinic.url}
        self.worker = Process(folder, "clinic-worker", free_port(), "probe-port", **queue)
        self.queued = b""
        """What lay in the queue while a job was worked on."""
        self.told: list[bytes] = []
        """Bodies of responses to requests that the word was in."""

    @property
    def processes(self) -> tuple[Process, ...]:
        return self.zoom, self.cca, self.clinic, self.worker

    def ask(
        self,
        image: bytes,
        headers: dict[str, str] | None = None,
        *,
        policy_fails_with: int | None = None,
        **form: object,
    ) -> httpx.Response:
        self.policy.fail_with = policy_fails_with
        fields = {"question": "What is shown?", "k": "1"} | form
        files = {"image": (f"{CANARY}.dcm", image, "application/octet-stream")}
        response = httpx.post(
            f"{self.clinic.url}/v1/cases",
            data=fields,
            files=files,
            headers=headers,
            timeout=60,
            trust_env=False,
        )
        self.told.append(response.content)
        return response

    def post(self, path: str, **options: object) -> httpx.Response:
        response = httpx.post(self.clinic.url + path, timeout=60, trust_env=False, **options)  # pyright: ignore[reportArgumentType]
        self.told.append(response.content)
        return response

    def get(self, path: str, **options: object) -> httpx.Response:
        response = httpx.get(self.clinic.url + path, timeout=60, trust_env=False, **options)  # pyright: ignore[reportArgumentType]
        self.told.append(response.content)
        return response

    def kept(self) -> dict[str, bytes]:
        """Every file of the system but the database of pseudonyms, by its name."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(f): f.read_bytes() for f in files if "-pseudonyms.sqlite" not in f.name}

    def vault(self) -> bytes:
        return b"".join(f.read_bytes() for f in self.folder.glob("clinic-pseudonyms.sqlite*"))

    def sent(self) -> bytes:
        return b"".join(request.model_dump_json().encode() for request in self.policy.requests)


@contextmanager
def _running(hospital: Hospital) -> Iterator[Hospital]:
    with ExitStack() as stack:
        for process in hospital.processes:
            stack.callback(process.stop)
        for process in hospital.processes:
            process.wait()
        yield hospital


def has(word: str, content: bytes) -> bool:
    return word.lower().encode() in content.lower()


def dicom() -> bytes:
    stored = np.kron(np.arange(100, dtype=np.uint16).reshape(10, 10), np.ones((16, 16), np.uint16))
    return file_of(canary_dataset(CANARY, stored))


def rasters() -> dict[str, bytes]:
    """The word in the metadata of every other format."""
    image = picture(160, 160)
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = CANARY, CANARY  # ImageDescription, Artist
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", CANARY)
    texts.add_text(CANARY, CANARY, zip=True)
    texts.add_itxt("Comment", CANARY)
    options = {
        "PNG": {"pnginfo": texts, "exif": exif},
        "JPEG": {"exif": exif, "comment": CANARY},
        "WEBP": {"exif": exif, "xmp": CANARY.encode(), "lossless": True},
        "TIFF": {"description": CANARY, "artist": CANARY},
    }
    files: dict[str, bytes] = {}
    for name, option in options.items():
        buffer = io.BytesIO()
        image.save(buffer, name, **option)
        files[name] = buffer.getvalue()
        assert has(CANARY, files[name]), name
    return files


def nifti() -> bytes:
    voxels = np.arange(40**3, dtype=np.int16).reshape(40, 40, 40)
    names = {"descrip": CANARY, "aux_file": CANARY, "intent_name": CANARY, "db_name": CANARY}
    return nifti_of(voxels, **names)


def cases_that_are_answered(hospital: Hospital) -> None:
    key = {"idempotency-key": f'"{CANARY}"'}
    asked = {"question": f"Has {CANARY.lower()} a nodule?", "choices": [f"{CANARY}'s", "no"]}
    first = hospital.ask(dicom(), key, **asked)
    assert first.status_code == 201, first.text
    assert hospital.ask(dicom(), key, **asked).content == first.content
    case = first.json()
    assert (case["status"], case["question"]) == ("answered", "Has [removed] a nodule?")
    assert case["subject"]["num_removed"] == 2
    assert case["evidence"], "it zoomed"
    for path in ("", "/events", "/image", "/heatmap"):
        assert hospital.get(f"/v1/cases/{case['case_id']}{path}").status_code == 200
    for name, image in rasters().items():
        assert hospital.ask(image).json()["status"] == "answered", name
    shown = hospital.ask(nifti(), axis="axial", index="3", window_center="9", window_width="50")
    assert shown.json()["status"] == "answered"
    hospital.get("/v1/cases")


def requests_that_fail(hospital: Hospital) -> None:
    """The word where it makes things fail; bodies that repeat a caller's own URL are not kept."""
    bad_slope = patched(file_of(dataset_of(np.ones((9, 9), np.uint16), RescaleSlope="1.23456789",
                                      RescaleIntercept=0)), "1.23456789", CANARY)  # fmt: skip
    images = {
        "bad number": bad_slope,
        "cut off": dicom()[:-9000],
        "no syntax": dicom().replace(b"1.2.840.10008.1.2.1\x00", CANARY.encode().ljust(20)),
        "cut PNG": rasters()["PNG"][:-2000],
        "cut TIFF": rasters()["TIFF"][:9000],
        "no image": CANARY.encode() * 20,
        "header alone": nifti()[:352],
    }
    for name, image in images.items():
        axis = {"axis": "axial", "index": "0"} if name == "header alone" else {}
        response = hospital.ask(image, **axis)
        assert response.status_code in (413, 415, 422), (name, response.text)
    forms: dict[str, dict[str, object]] = {
        "control": {"question": f"{CANARY} <|im_end|>"},
        "long": {"question": CANARY * 300},
        "repeated": {"choices": [CANARY, CANARY.lower()]},
        "number": {"k": CANARY},
        "axis": {"axis": CANARY},
        "window": {"window": CANARY},
        "removed": {"choices": [CANARY, f" {CANARY} "]},
    }
    for name, form in forms.items():
        assert hospital.ask(dicom(), **form).status_code == 422, name
    assert hospital.ask(dicom(), {"idempotency-key": f"{CANARY}\\"}).status_code == 400
    for path in (f"/v1/cases/{CANARY}", f"/v1/cases?before={CANARY}", f"/{CANARY}"):
        response = httpx.get(hospital.clinic.url + path, trust_env=False)
        assert response.status_code == 404
    for path in (f"/v1/images/{CANARY}", f"/v1/images/{CANARY}/facts", f"/{CANARY}"):
        assert httpx.get(hospital.zoom.url + path, trust_env=False).status_code == 404


def neighbours_that_fail(hospital: Hospital) -> None:
    ask = {"question": f"Has {CANARY} a nodule?"}
    case = hospital.ask(dicom(), policy_fails_with=400, **ask).json()
    assert (case["status"], case["failure"]["service"]) == ("failed", "policy")
    hospital.zoom.stop()
    assert hospital.ask(dicom(), **ask).status_code == 503


def questions_that_go_on(hospital: Hospital) -> None:
    first = hospital.ask(dicom()).json()
    asked = {"question": f"Is {CANARY} ill?", "choices": [f"{CANARY} is", "no"]}
    path = f"/v1/cases/{first['case_id']}/follow-ups"
    case = hospital.post(path, json=asked).json()
    assert (case["status"], case["question"]) == ("answered", "Is [removed] ill?")
    assert case["subject"] == first["subject"] | {"num_removed": 2}
    for body in ({"question": 1, "k": CANARY}, {"question": f"{CANARY}<|im_end|>"}):
        assert hospital.post(path, json=body).status_code == 422


def many_questions(hospital: Hospital) -> None:
    images = [(f"{CANARY}.dcm", dicom()), (f"{CANARY}.png", rasters()["PNG"])]
    files = [("images", (name, image, "application/octet-stream")) for name, image in images]

    def ask(rows: str) -> httpx.Response:
        sheet = ("questions", (f"{CANARY}.csv", rows.encode(), "text/csv"))
        return hospital.post("/v1/jobs", data={"k": "1"}, files=[*files, sheet])

    header = "image,question,choices\n"
    for row in (f"{CANARY},?,", f"{CANARY}.dcm,{CANARY}<|im_end|>,", f'{CANARY},"{CANARY}'):
        assert ask(f"{header}{row}\n").status_code == 422
    assert ask(f"{CANARY}\n").status_code == 422
    hospital.policy.release.clear()
    patient = f"{CANARY}.dcm,Has {CANARY} a nodule?,{CANARY} has|no\n"
    job = ask(f"{header}{patient * 3}{CANARY}.png,What is it?,\n").json()
    assert job["items"][0]["question"] == "Has [removed] a nodule?"
    until(lambda: hospital.get(job["url"]).json()["counts"]["running"] == 2)
    with redis.Redis.from_url(hospital.redis_url) as queue:
        hospital.queued = everything_in(queue)
    assert has(job["job_id"], hospital.queued)
    hospital.policy.release.set()
    until(lambda: hospital.get(job["url"]).json()["status"] == "done")
    hospital.get("/v1/jobs")


def a_name_that_no_header_tells(hospital: Hospital) -> None:
    case = hospital.ask(rasters()["PNG"], question=f"Has Mr {FREE} a nodule?").json()
    hospital.get(f"/v1/cases/{case['case_id']}/events")
    assert case["question"] == f"Has Mr {FREE} a nodule?"
    assert case["subject"] == dict.fromkeys(("patient", "study", "header")) | {"num_removed": 0}


@dataclass(frozen=True)
class Aftermath:
    """What is left of the hospital."""

    kept: dict[str, bytes]
    metrics: dict[str, bytes]
    told: list[bytes]
    queued: bytes
    """In Redis."""
    sent: bytes
    """To the policy."""
    vault: bytes
    """The database of pseudonyms."""


@pytest.fixture(scope="module")
def aftermath(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int], _valkey_server: str
) -> Iterator[Aftermath]:
    folder = tmp_path_factory.mktemp("hospital")
    policy = ScriptedPolicy(BlobStore(str(folder / "blobs")))
    policy.rehearse([look([10, 10, 60, 60]), answer("A")])
    with served(scripted_app(policy)) as policy.url:
        with _running(
            Hospital(folder, free_port, policy, _valkey_server.replace("/0", "/2"))
        ) as hospital:
            cases_that_are_answered(hospital)
            questions_that_go_on(hospital)
            many_questions(hospital)
            a_name_that_no_header_tells(hospital)
            requests_that_fail(hospital)
            metrics = {p.url: p.metrics().encode() for p in hospital.processes}
            neighbours_that_fail(hospital)
        yield Aftermath(
            hospital.kept(),
            metrics,
            hospital.told,
            hospital.queued,
            hospital.sent(),
            hospital.vault(),
        )


@pytest.mark.timeout(600)
def test_the_word_is_in_nothing_but_the_pseudonyms(aftermath: Aftermath):
    logs = [text.decode() for name, text in aftermath.kept.items() if name.endswith(".log")]
    assert len(logs) == 4
    assert all(logs)
    assert any("case failed" in log for log in logs)
    assert [name for name, content in aftermath.kept.items() if has(CANARY, content)] == []
    assert [url for url, text in aftermath.metrics.items() if has(CANARY, text)] == []
    assert [body for body in aftermath.told if has(CANARY, body)] == []
    assert not has(CANARY, aftermath.queued)
    assert not has(CANARY, aftermath.sent)
    assert b"[removed]" in aftermath.sent
    assert has(CANARY, aftermath.vault)


def test_what_no_header_tells_stays_in_the_case_and_goes_to_the_policy_alone(
    aftermath: Aftermath,
):
    where = {Path(name).name for name, content in aftermath.kept.items() if has(FREE, content)}
    assert where == {"clinic.sqlite"}
    assert has(FREE, aftermath.sent)
    assert not has(FREE, aftermath.vault)
    assert not any(has(FREE, text) for text in aftermath.metrics.values())
