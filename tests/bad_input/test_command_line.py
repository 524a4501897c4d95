"""Commands that cannot be carried out: exit code 1 or 2, one line that names the fault."""

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from shared.geometry import ImageSize
from shared.problem import AnswerKind, Problem, ProblemSetManifest, write_problem_set
from shared.weights import publish_version
from tests.processes import ended
from tests.trainer.groups import make_checkpoint

NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Scene:
    """Files of every kind, and a port that is taken."""

    folder: Path
    taken_port: int

    def path(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("command-line")
    (folder / "text").write_text("hello")
    (folder / "empty").mkdir()
    make_problem_sets(folder)
    make_checkpoints(folder)
    (folder / "stack").mkdir()
    (folder / "stack" / "state.json").write_text("{")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Scene(folder, listener.getsockname()[1])


def make_problem_sets(folder: Path) -> None:
    problem = Problem(
        problem_id="p",
        image="0" * 64,
        image_size=ImageSize(10, 10),
        question="What?",
        gold_answer="yes",
        answer_kind=AnswerKind.YES_NO,
    )
    manifest = ProblemSetManifest(name="s", num_problems=1, seed=0, source="test")
    for name in ("set", "set-cut", "set-short", "set-manifest"):
        write_problem_set(folder / name, manifest, [problem])
    table = folder / "set-cut" / "problems.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    more = msgspec.structs.replace(manifest, num_problems=2)
    (folder / "set-short" / "manifest.json").write_bytes(msgspec.json.encode(more))
    (folder / "set-manifest" / "manifest.json").write_text('{"name": 3}')


def make_checkpoints(folder: Path) -> None:
    whole = folder / "checkpoint"
    make_checkpoint(whole)
    for name in ("cut", "config", "other", "manifest", "tokenizer", "weights"):
        shutil.copytree(whole, folder / f"checkpoint-{name}")
    weights = next((folder / "checkpoint-cut").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "checkpoint-config" / "config.json").write_text("{")
    (folder / "checkpoint-other" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "checkpoint-manifest" / "medvr.json").write_text('{"format": "one"}')
    (folder / "checkpoint-tokenizer" / "tokenizer.json").unlink()
    for path in (folder / "checkpoint-weights").glob("*.safetensors"):
        path.unlink()
    shutil.copytree(whole, folder / "staging")
    published = Path(publish_version(folder / "staging", folder / "weights", "run", 3).path)
    published.rename(folder / "version")
    (folder / "version" / "config.json").write_bytes(
        (folder / "version" / "config.json").read_bytes() + b"\n"
    )


EVALUATION = ("evaluation", "--out", "{folder}/out", "--problem-set")
EVALUATION_URLS = ("--policy-url", NOBODY, "--zoom-url", NOBODY, "--cca-url", NOBODY)
POLICY = ("policy", "--port", "{free_port}", "--model")
TRAINER = ("trainer", "--run", "r", "--run-root", "{folder}/runs", "--model")
CASES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "an unknown command": (("zooom",), 2, "error: no command 'zooom'"),
    "an unknown command of the stack": (("local", "start"), 2, "error: no command 'start'"),
    "an unknown kind of problem": (("problems", "xrays"), 2, "invalid choice: 'xrays'"),
    "a problem set that is not there": (
        ("feeder", "--problem-set", "{folder}/nowhere"),
        1,
        "nowhere is not a problem set: it has no manifest.json",
    ),
    "a problem set cut off": (
        ("feeder", "--problem-set", "{folder}/set-cut"),
        1,
        "set-cut/problems.parquet: ",
    ),
    "a problem set that lacks problems": (
        ("feeder", "--problem-set", "{folder}/set-short"),
        1,
        "manifest says 2 problems, file has 1",
    ),
    "a problem set with a wrong manifest": (
        (*EVALUATION, "{folder}/set-manifest"),
        1,
        "set-manifest/manifest.json: Expected `str`, got `int` - at `$.name`",
    ),
    "an evaluation of nothing": ((*EVALUATION, "{folder}/empty"), 1, "is not a problem set"),
    "an evaluation written into a file": (
        ("evaluation", "--problem-set", "{folder}/set", "--out", "{folder}/text"),
        1,
        "/text)",
    ),
    "an evaluation that reaches nobody": (
        (*EVALUATION, "{folder}/set", "--patience-s", "0", *EVALUATION_URLS),
        1,
        "error: policy: ",
    ),
    "phantoms without a zoom": (
        ("problems", "phantoms", "--out", "{folder}/p", "--zoom", NOBODY, "--sets", "brain-test"),
        1,
        "error: zoom: ",
    ),
    "a contact sheet written into a folder": (
        ("problems", "contact-sheet", "--out", "{folder}/empty", "--number", "1"),
        1,
        "/empty)",
    ),
    "scenes that are not there": (
        ("tiny-base", "--scenes", "{folder}/nowhere", "--out", "{folder}/o"),
        1,
        "nowhere cannot be read as parquet",
    ),
    "scenes that are a text": (
        ("tiny-base", "--scenes", "{folder}/text", "--out", "{folder}/o"),
        1,
        "text cannot be read as parquet",
    ),
    "scenes that are problems": (
        ("tiny-base", "--scenes", "{folder}/set/problems.parquet", "--out", "{folder}/o"),
        1,
        "is not a scene file of format 3",
    ),
    "a policy that is not there": (
        (*POLICY, "{folder}/nowhere"),
        1,
        "nowhere is neither a folder nor a hub name (owner/model)",
    ),
    "a policy that is an empty folder": (
        (*POLICY, "{folder}/empty"),
        1,
        "empty is no checkpoint: it has no config.json",
    ),
    "a policy with half a configuration": (
        (*POLICY, "{folder}/checkpoint-config"),
        1,
        "checkpoint-config/config.json: Input data was truncated",
    ),
    "a policy that is another model": (
        (*POLICY, "{folder}/checkpoint-other"),
        1,
        "checkpoint-other is a llama; accepted: qwen2_5_vl",
    ),
    "a policy whose weights are cut off": (
        (*POLICY, "{folder}/checkpoint-cut"),
        1,
        "bytes, its header says",
    ),
    "a policy without weights": (
        (*POLICY, "{folder}/checkpoint-weights"),
        1,
        "checkpoint-weights holds no *.safetensors",
    ),
    "a policy without a tokenizer": (
        (*POLICY, "{folder}/checkpoint-tokenizer"),
        1,
        "has no tokenizer (tokenizer.json or vocab.json)",
    ),
    "a policy with a wrong manifest": (
        (*POLICY, "{folder}/checkpoint-manifest"),
        1,
        "checkpoint-manifest/medvr.json: Expected `int`, got `str`",
    ),
    "a published version that was changed": (
        (*POLICY, "{folder}/version"),
        1,
        "version: config.json is not what the manifest says",
    ),
    "a context beyond the model's": (
        (*POLICY, "{folder}/checkpoint", "--max-model-len", "99999"),
        1,
        "max_model_len 99999 is more than the",
    ),
    "a policy on a port that is taken": (
        ("policy", "--model", "{folder}/checkpoint", "--port", "{taken_port}"),
        1,
        "cannot listen on 127.0.0.1:{taken_port} (Address already in use)",
    ),
    "a zoom on a port that is taken": (
        ("zoom", "--blob-url", "{folder}/blobs", "--port", "{taken_port}"),
        1,
        "cannot listen on 127.0.0.1:{taken_port} (Address already in use); choose a free port",
    ),
    "a scorer on another machine's address": (
        ("cca", "--host", "192.0.2.1", "--port", "{free_port}"),
        1,
        "cannot listen on 192.0.2.1:{free_port} (Cannot assign requested address)",
    ),
    "a worker whose probes have no port": (
        ("rollout", "--probe-port", "{taken_port}"),
        1,
        "cannot listen on 127.0.0.1:{taken_port}",
    ),
    "a feeder whose probes have no port": (
        ("feeder", "--problem-set", "{folder}/set", "--probe-port", "{taken_port}"),
        1,
        "cannot listen on 127.0.0.1:{taken_port}",
    ),
    "a trainer whose probes have no port": (
        (*TRAINER, "{folder}/checkpoint", "--probe-port", "{taken_port}"),
        1,
        "cannot listen on 127.0.0.1:{taken_port}",
    ),
    "a trainer of what is no checkpoint": (
        (*TRAINER, "{folder}/empty", "--probe-port", "{free_port}"),
        1,
        "empty is no checkpoint",
    ),
    "a trainer of weights that are cut off": (
        (*TRAINER, "{folder}/checkpoint-cut", "--probe-port", "{free_port}"),
        1,
        "bytes, its header says",
    ),
    "blobs in a store that nobody knows": (
        ("zoom", "--blob-url", "nosuch://blobs", "--port", "{free_port}"),
        1,
        "blob_url 'nosuch://blobs' is neither a folder nor a URL that fsspec opens",
    ),
    "a database that is a text": (
        ("clinic", "--database", "{folder}/text", "--port", "{free_port}"),
        1,
        "is no SQLite database",
    ),
    "a database in a folder that cannot be": (
        ("clinic", "--database", "/proc/nowhere/clinic.sqlite", "--port", "{free_port}"),
        1,
        "/proc/nowhere",
    ),
    "a stack of what is no checkpoint": (
        ("local", "up", "--folder", "{folder}/new", "--model", "{folder}/empty"),
        1,
        "empty is no checkpoint",
    ),
    "a demo that starts over and continues": (
        ("local", "demo", "--folder", "{folder}/new", "--resume", "--fresh"),
        1,
        "--fresh starts over and --resume continues: give one of them",
    ),
    "a demo without a beginning": (
        ("local", "demo", "--folder", "{folder}/new", "--resume", "--no-serve"),
        1,
        "nothing to resume",
    ),
    "the status of half a state": (
        ("status", "--folder", "{folder}/stack"),
        1,
        "state.json is not a stack's state",
    ),
}


@pytest.mark.parametrize(("command", "code", "says"), CASES.values(), ids=CASES.keys())
def test_a_command_that_cannot_be_carried_out_says_why(
    scene: Scene,
    free_port: Callable[[], int],
    command: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    words = {"folder": scene.folder, "taken_port": scene.taken_port, "free_port": free_port()}
    process = ended(*(word.format(**words) for word in command), cwd=scene.folder)

    said = process.stderr
    assert process.returncode == code, said
    assert says.format(**words) in said
    for noise in ("Traceback", "errors.pydantic.dev"):
        assert noise not in said
    assert "error: " in said or "the trainer ends: " in said


def test_the_status_of_nothing_is_three_and_a_sentence(tmp_path: Path) -> None:
    process = ended("status", "--folder", str(tmp_path))
    assert (process.returncode, process.stderr) == (3, "")
    assert "nothing is running in" in process.stdout
    assert ended("local", "status", "--folder", str(tmp_path)).stdout == process.stdout
