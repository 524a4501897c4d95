"""Two of policy, zoom, cca and rollout worker on one machine, each policy behind a door."""

import contextlib
import dataclasses
from collections.abc import Generator
from dataclasses import dataclass

from services.local.ports import free_ports
from services.local.processes import CommandLines
from services.local.settings import TINY
from services.local.spec import ProcessSpec
from services.rollout.order import ProblemOrder
from shared.clients.replicas import rendezvous_order
from shared.weights import TRAIN_CHANNEL
from tests.chaos.doors import Door, standing
from tests.chaos.system import System, metric, with_flags

FIRST_GROUPS = 12
"""So many groups are sure to be fed; each replica is the favourite of a third of them at least."""


@dataclass(frozen=True)
class Twofold:
    """A running system of which there are second copies to start."""

    system: System
    second: CommandLines
    doors: tuple[Door, Door]

    def policy(self) -> ProcessSpec:
        """The second policy server."""
        plan = self.system.plan
        spec = self.second.policy(
            TINY / "base", channel=TRAIN_CHANNEL, max_num_seqs=32, threads=plan.policy_threads
        )
        return dataclasses.replace(spec, name="policy-2")

    def zoom_and_cca(self) -> tuple[ProcessSpec, ProcessSpec]:
        """The second zoom and the second cca."""
        return (
            dataclasses.replace(self.second.zoom(), name="zoom-2"),
            dataclasses.replace(self.second.cca(), name="cca-2"),
        )

    def training(self, run: str) -> tuple[ProcessSpec, ...]:
        """Trainer, feeder and two workers of a run, which know all replicas."""
        system = dataclasses.replace(self.system, run=run)
        trainer, feeder, worker = system.training()
        first, second = system.lines, self.second
        both = with_flags(
            worker,
            policy_url=",".join(door.url for door in self.doors),
            zoom_url=f"{first.zoom_url},{second.zoom_url}",
            cca_url=f"{first.cca_url},{second.cca_url}",
        )
        other = with_flags(both, probe_port=second.ports.rollout)
        other = dataclasses.replace(other, name="rollout-2", port=second.ports.rollout)
        return trainer, feeder, both, other

    def prefix_tokens(self, *, served_by: tuple[int, ...]) -> "PrefixTokens":
        """vLLM's own count over these policy servers."""
        ports = (self.system.lines.ports.policy, self.second.ports.policy)
        counts = [
            [metric(ports[index], f"vllm:prefix_cache_{what}_total") for index in served_by]
            for what in ("queries", "hits")
        ]
        asked, hit = (sum(count or 0.0 for count in one) for one in counts)
        return PrefixTokens(asked, hit)


@dataclass(frozen=True)
class PrefixTokens:
    """Prompt tokens looked up in the prefix cache, and those found there."""

    asked: float
    hit: float

    def since(self, before: "PrefixTokens") -> "PrefixTokens":
        """What was added."""
        return PrefixTokens(self.asked - before.asked, self.hit - before.hit)

    @property
    def share(self) -> float:
        """Found of looked up."""
        return self.hit / self.asked


@contextlib.contextmanager
def twofold(system: System, *, run: str) -> Generator[Twofold]:
    """Open the doors and find the ports of the second copies.

    The ports decide by hash which replica a group belongs to: they are chosen so that each is the
    favourite of enough groups of `run`.
    """
    first = system.lines
    policy, zoom, cca, rollout = free_ports(4)
    ports = dataclasses.replace(first.ports, policy=policy, zoom=zoom, cca=cca, rollout=rollout)
    second = CommandLines(first.paths, ports)
    order = ProblemOrder(run, system.problems, system.plan.seed)
    groups = [order.task_at(position).group_id for position in range(FIRST_GROUPS)]
    door_ports = free_ports(2)
    while not _is_balanced(groups, door_ports):
        door_ports = free_ports(2)
    with (
        standing(Door(first.policy_url), door_ports[0]) as one,
        standing(Door(second.policy_url), door_ports[1]) as two,
    ):
        yield Twofold(system, second, (one, two))


def _is_balanced(groups: list[str], door_ports: list[int]) -> bool:
    urls = [f"http://127.0.0.1:{port}" for port in door_ports]
    num_of_first = sum(rendezvous_order(group, urls)[0] == urls[0] for group in groups)
    return FIRST_GROUPS // 3 <= num_of_first <= FIRST_GROUPS - FIRST_GROUPS // 3
