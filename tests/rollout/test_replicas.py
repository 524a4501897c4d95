"""A group among several replicas of policy, zoom and cca: real apps on loopback."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from starlette.middleware.base import RequestResponseEndpoint

from services.cca.app import create_app as create_cca
from services.cca.settings import CcaSettings
from services.rollout.attempt import Services, make_group_with_retries
from services.rollout.metrics import RolloutMetrics
from services.rollout.settings import RolloutSettings
from services.rollout.task import RolloutTask
from services.zoom.app import create_app as create_zoom
from services.zoom.settings import ZoomSettings
from shared.blobs import BlobStore
from shared.clients.replicas import rendezvous_order
from shared.service.problems import problem_response
from shared.trajectory import TrajectoryGroup, make_group_id
from tests.rollout.company import RUN, served
from tests.rollout.scripted_policy import ScriptedPolicy, scripted_app
from tests.rollout.stage import make_problem, store_image


@dataclass
class Replica:
    """An app that counts its requests and can be told to be away."""

    app: FastAPI
    is_away: bool = False
    dies_after: int | None = None
    """Requests it still answers before it is away."""
    paths: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        @self.app.middleware("http")
        async def watch(request: Request, call_next: RequestResponseEndpoint) -> Response:
            if self.dies_after is not None and len(self.paths) >= self.dies_after:
                self.is_away = True
            if self.is_away:
                return problem_response(503, "Not ready", "away")
            self.paths.append(request.url.path)
            return await call_next(request)

    def take_paths(self) -> list[str]:
        """What was asked since the last look."""
        paths, self.paths = self.paths, []
        return paths


@dataclass
class Town:
    """Two of everything, and one worker's clients."""

    policies: list[Replica]
    zooms: list[Replica]
    ccas: list[Replica]
    scripts: list[ScriptedPolicy]
    image: str
    settings: RolloutSettings

    async def make(self, number: int) -> TrajectoryGroup:
        problem = make_problem(self.image, number)
        task = RolloutTask(
            group_id=make_group_id(RUN, 0, problem.problem_id),
            run=RUN,
            round=0,
            position=number,
            problem=problem,
        )
        services = Services.connect(self.settings)
        try:
            group = await make_group_with_retries(
                task, services, self.settings, RolloutMetrics(CollectorRegistry()), lambda: True
            )
        finally:
            await services.aclose()
        assert group is not None
        return group

    def favourite(self, number: int) -> int:
        """Index of the policy replica that a group belongs to."""
        urls = [replica.url for replica in self.policies]
        order = rendezvous_order(make_group_id(RUN, 0, f"p{number}"), urls)
        return urls.index(order[0])

    def group_of(self, index: int) -> int:
        """A group that belongs to the policy replica of this index."""
        return next(number for number in range(100) if self.favourite(number) == index)


@pytest.fixture
def town(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Town]:
    blobs = BlobStore(str(tmp_path / "blobs"))
    vocabulary: dict[int, str] = {}
    scripts = [ScriptedPolicy(blobs, version=v, pieces=vocabulary) for v in (3, 4)]
    policies = [Replica(scripted_app(script)) for script in scripts]
    zooms = [Replica(create_zoom(ZoomSettings(blob_url=str(tmp_path / "blobs")))) for _ in "12"]
    ccas = [Replica(create_cca(CcaSettings())) for _ in "12"]
    with contextlib.ExitStack() as stack:
        for replica in (*policies, *zooms, *ccas):
            replica.url = stack.enter_context(served(replica.app, free_port()))

        def urls(replicas: list[Replica]) -> str:
            return ",".join(replica.url for replica in replicas)

        settings = RolloutSettings(
            run=RUN,
            policy_url=urls(policies),
            zoom_url=urls(zooms),
            cca_url=urls(ccas),
            group_size=4,
            max_turn_tokens=200,
            first_backoff_s=0.05,
        )
        yield Town(policies, zooms, ccas, scripts, store_image(blobs), settings)


async def test_the_requests_of_a_group_go_to_one_policy_replica_and_both_get_groups(
    town: Town,
) -> None:
    num_groups = [0, 0]
    for number in range(8):
        await town.make(number)
        asked = [replica.take_paths() for replica in town.policies]
        home = town.favourite(number)
        assert len(asked[home]) > 4
        assert asked[1 - home] == []
        num_groups[home] += 1
    assert min(num_groups) > 0


async def test_crops_of_an_image_go_to_one_zoom_replica(town: Town) -> None:
    for number in range(3):
        await town.make(number)
    asked = sorted(replica.paths.count("/v1/crops") for replica in town.zooms)
    assert asked[0] == 0
    assert asked[1] > 3


async def test_a_group_outlives_its_replica_and_says_which_version_wrote_what(town: Town) -> None:
    number = town.group_of(0)
    town.policies[0].dies_after = 3
    group = await town.make(number)
    assert len(town.policies[0].paths) == 3
    assert len(town.policies[1].paths) > 0
    versions = {
        span.version
        for trajectory in group.trajectories
        for turn in trajectory.turns
        for span in turn.generation.version_spans
    }
    assert versions == {3, 4}
    assert group.oldest_version == 3


async def test_a_group_is_the_same_whichever_replica_makes_it(town: Town) -> None:
    """The seeds are the group's own, so a replica of the same version writes the same."""
    town.scripts[1].version = town.scripts[0].version
    number = town.group_of(0)
    at_home = await town.make(number)
    town.policies[0].is_away = True
    abroad = await town.make(number)
    assert abroad.trajectories == at_home.trajectories


@pytest.mark.parametrize("kind", ["zooms", "ccas"])
async def test_groups_are_made_while_a_zoom_or_cca_replica_is_away(town: Town, kind: str) -> None:
    replicas: list[Replica] = getattr(town, kind)
    for away in replicas:
        away.is_away = True
        await town.make(0)
        away.is_away = False
        assert away.paths == []
        assert all(replica.take_paths() for replica in replicas if replica is not away)
