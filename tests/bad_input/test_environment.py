"""Variables and flags that cannot be: exit code 2, one line, the setting and what it takes."""

from dataclasses import dataclass, field

import pytest

from tests.processes import ended


@dataclass(frozen=True)
class BadSettings:
    """One row: how a process is started, and the words of its refusal."""

    name: str
    service: str
    says: tuple[str, ...]
    flags: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def by_variable(name: str, service: str, *says: str, **variables: str) -> BadSettings:
    return BadSettings(name, service, says, variables=variables)


def by_flag(name: str, service: str, flags: str, *says: str) -> BadSettings:
    return BadSettings(name, service, says, flags=tuple(flags.split()))


TRAINER = "--model x --run r"
CASES = [
    by_variable(
        "a misspelt variable",
        "zoom",
        "unknown environment variable MEDVR_ZOOM_PROT; accepted: ",
        "MEDVR_ZOOM_PORT",
        MEDVR_ZOOM_PROT="1",
    ),
    by_variable(
        "a misspelt variable in small letters",
        "cca",
        "unknown environment variable medvr_cca_prot",
        "MEDVR_CCA_PORT",
        medvr_cca_prot="1",
    ),
    by_variable(
        "a variable of another service's",
        "feeder",
        "MEDVR_FEEDER_GROUP_SIZE",
        "MEDVR_FEEDER_MAX_OUTSTANDING",
        MEDVR_FEEDER_GROUP_SIZE="16",
    ),
    by_variable(
        "Kubernetes' port of a Service named medvr-zoom",
        "zoom",
        "port: Input should be a valid integer",
        "got 'tcp://10.96.0.7:8120'",
        "set enableServiceLinks: false",
        MEDVR_ZOOM_PORT="tcp://10.96.0.7:8120",
    ),
    by_variable(
        "Kubernetes' other variables of it",
        "clinic",
        "unknown environment variable MEDVR_CLINIC_PORT_8080_TCP",
        "set enableServiceLinks: false",
        MEDVR_CLINIC_PORT_8080_TCP="tcp://10.96.0.8:8080",
    ),
    by_variable(
        "a word for a number",
        "clinic",
        "default_k: Input should be a valid integer",
        "flag --default-k, variable MEDVR_CLINIC_DEFAULT_K",
        MEDVR_CLINIC_DEFAULT_K="five",
    ),
    by_variable(
        "a number over its limit",
        "policy",
        "less than or equal to 65535",
        MEDVR_POLICY_PORT="70000",
    ),
    by_variable(
        "a NaN",
        "rollout",
        "base_probability: Input should be",
        MEDVR_ROLLOUT_BASE_PROBABILITY="nan",
    ),
    by_variable(
        "a channel that is not there",
        "policy",
        "'none', 'policy:train' or 'policy:clinic'",
        MEDVR_POLICY_CHANNEL="policy:test",
    ),
    by_variable(
        "a level that is not logged",
        "cca",
        "log_level: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
        MEDVR_CCA_LOG_LEVEL="loud",
    ),
    by_variable(
        "an address that is no Redis URL",
        "rollout",
        "redis_url: must start with redis:// or rediss:// or unix://",
        MEDVR_ROLLOUT_REDIS_URL="127.0.0.1:6379",
    ),
    by_variable(
        "a password in what is no Redis URL",
        "feeder",
        "got 'http://…@cache/0'",
        MEDVR_FEEDER_REDIS_URL="http://user:secret@cache/0",
    ),
    by_variable(
        "an address without http",
        "clinic",
        "policy_url: 'policy:8100' is no base URL: http://…, https://… or dns+http://name:port",
        MEDVR_CLINIC_POLICY_URL="policy:8100",
    ),
    by_variable(
        "a run that would leave its folder",
        "trainer",
        "run: String should match pattern",
        MEDVR_TRAINER_MODEL="x",
        MEDVR_TRAINER_RUN="../r",
    ),
    by_flag("no model and no run", "trainer", "", "model: Field required", "run: Field required"),
    by_flag("no model", "policy", "", "model: Field required (flag --model, variable MEDVR_POL"),
    by_flag(
        "fewer groups outstanding than a checkpoint holds",
        "trainer",
        f"{TRAINER} --groups-per-step 8 --checkpoint-every 2 --publish-every 2 --max-outstanding 8",
        "max_outstanding is 8, but must lie between 16 (groups_per_step 8 · checkpoint_every 2)",
    ),
    by_flag(
        "more groups outstanding than stay fresh",
        "trainer",
        f"{TRAINER} --max-outstanding 500",
        "max_outstanding is 500, but must lie between 8",
    ),
    by_flag(
        "a version without a checkpoint",
        "trainer",
        f"{TRAINER} --checkpoint-every 2 --publish-every 3",
        "publish_every 3 must be a multiple of checkpoint_every 2",
    ),
    by_flag("an unknown flag", "zoom", "--prot 1", "unrecognized arguments: --prot 1", "--port"),
    by_flag("a flag without its value", "cca", "--port", "argument --port: expected one argument"),
    by_flag("half a probability", "rollout", "--base-probability 1.5", "less than or equal to 1"),
    by_flag("no problem set", "evaluation", "--out x", "problem_set: Field required"),
    by_flag("no phantom", "problems", "phantoms --out x --train 0", "whole number from 1 on"),
    by_flag("no threads", "tiny-base", "--scenes x --out y --threads 0", "whole number from 1 on"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.service}: {case.name}")
def test_settings_that_cannot_be_end_the_process_with_a_sentence(case: BadSettings) -> None:
    process = ended(case.service, *case.flags, **case.variables)

    assert process.returncode == 2
    assert process.stdout == ""
    missing = [words for words in case.says if words not in process.stderr]
    assert not missing, f"{missing} not in {process.stderr!r}"
    for noise in ("Traceback", "errors.pydantic.dev", "secret", "ValidationError"):
        assert noise not in process.stderr
    last = process.stderr.strip().splitlines()[-1]
    assert "error: " in last, "the last line is the message"
