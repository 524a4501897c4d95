"""How the next token is chosen: by seed and position alone, from exactly the distribution."""

import asyncio

import numpy as np
import openai
import pytest
import torch

from services.policy.entropy import Choice, Chooser, EntropyTable, Record, draw
from shared.api.policy import GenerateRequest, TextSegment
from shared.clients.policy import PolicyClient
from tests.fixtures_policy import RunningPolicy

PROBABILITIES = (0.5, 0.25, 0.125, 0.1, 0.025, 0.0)


class Step:
    """One step of a batch whose rows all have the same logits."""

    def __init__(self) -> None:
        self.table = EntropyTable()
        self.chooser = Chooser(self.table)

    def take(self, choices: list[Choice], num_sampled: int = 0) -> list[int]:
        """The tokens of the rows, by what is left of their logits."""
        logits = torch.tensor(PROBABILITIES).log().repeat(len(choices), 1)
        records = {
            row: self.table.begin(f"{row}", [0] * num_sampled, choice)
            for row, choice in enumerate(choices)
        }
        self.chooser.choose(logits, records)
        assert logits.isfinite().sum(dim=1).tolist() == [1] * len(choices)
        return logits.argmax(dim=1).tolist()


def test_draws_have_the_probabilities_of_the_distribution() -> None:
    num_draws = 20_000
    drawn = Step().take([Choice(seed=seed) for seed in range(num_draws)])
    counts = np.bincount(drawn, minlength=len(PROBABILITIES))
    expected = num_draws * np.array(PROBABILITIES)
    assert counts[-1] == 0
    squares = (counts[:-1] - expected[:-1]) ** 2 / expected[:-1]
    assert squares.sum() < 13.28  # chi-square, 4 degrees of freedom, 1 %


def test_the_rarest_of_a_full_vocabulary_keeps_its_share() -> None:
    """Each has a probability that a float32 sum near 1 would swallow."""
    share = 2e-9
    weights = torch.full((1, 152_064), share)
    weights[0, 0] = 1.0 - share * (weights.shape[1] - 1)
    for token_id in (1, 75_000, 152_063):
        middle = 1.0 - share * (152_064 - token_id - 0.5)
        assert draw(weights, torch.tensor([middle], dtype=torch.float64)).item() == token_id


def test_a_draw_over_blocks_is_that_of_the_whole_sum() -> None:
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(200, 1700, generator=random).pow(8)
    uniforms = torch.rand(200, dtype=torch.float64, generator=random)
    cumulated = weights.double().cumsum(dim=1)
    whole = torch.searchsorted(cumulated, (uniforms * cumulated[:, -1])[:, None], right=True)
    assert draw(weights, uniforms).tolist() == whole[:, 0].tolist()


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.5, 1.0 - 2.0**-53])
@pytest.mark.parametrize("num_tokens", [7, 512, 600, 1024, 5000])
def test_a_token_without_weight_is_never_drawn(uniform: float, num_tokens: int) -> None:
    weights = torch.zeros(1, num_tokens)
    weights[0, 2], weights[0, num_tokens - 3] = 0.3, 0.7
    drawn = draw(weights, torch.tensor([uniform], dtype=torch.float64)).item()
    assert weights[0, int(drawn)] > 0


def test_the_logprob_of_a_given_token_is_known_where_its_probability_is_not() -> None:
    """A token 200 nats below the likeliest has probability 0 in float32."""
    table = EntropyTable()
    record = table.begin("k", [], Choice(forced_token_ids=[1]))
    Chooser(table).choose(torch.tensor([[0.0, -200.0]]), {0: record})
    assert table.take("k", 0, final=True)[1] == [pytest.approx(-200.0)]


def test_successive_positions_of_one_seed_are_independent() -> None:
    step = Step()
    pairs = [
        (step.take([Choice(seed=3)], p)[0], step.take([Choice(seed=3)], p + 1)[0])
        for p in range(0, 8000, 2)
    ]
    both = np.mean([first == second == 0 for first, second in pairs])
    assert abs(both - 0.25) < 0.03


def test_a_draw_depends_on_seed_and_position_and_not_on_the_row() -> None:
    seeds = list(range(50))
    alone = [Step().take([Choice(seed=seed)], 7)[0] for seed in seeds]
    together = Step().take([Choice(seed=seed) for seed in reversed(seeds)], 7)
    assert together == alone[::-1]
    assert Step().take([Choice(seed=seed) for seed in seeds], 8) != alone


def test_a_position_that_is_computed_again_is_chosen_and_recorded_again() -> None:
    step = Step()
    once, again = step.take([Choice(seed=11)]), step.take([Choice(seed=11)])
    entropies, logprobs = step.table.take("0", 0, final=True)
    assert once == again
    assert len(entropies) == len(logprobs) == 1
    assert logprobs[0] == pytest.approx(np.log(PROBABILITIES[once[0]]))


def test_greedy_given_and_drawn_rows_share_a_step() -> None:
    step = Step()
    tokens = step.take([Choice(), Choice(forced_token_ids=[4]), Choice(seed=1)])
    assert tokens[:2] == [0, 4]
    for row, token in enumerate(tokens):
        (entropy,), (logprob,) = step.table.take(str(row), 0, final=True)
        p = np.array(PROBABILITIES[:-1])
        assert entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
        assert logprob == pytest.approx(np.log(PROBABILITIES[token]), abs=1e-6)


def test_after_its_given_tokens_a_record_has_none() -> None:
    record = Record("k", [5, 6], Choice(forced_token_ids=[5, 6]))
    assert record.forced_token_id is None


async def test_seeded_turns_survive_more_prompts_than_one_step_holds(
    policy: PolicyClient,
) -> None:
    """The prompts are prefilled in chunks, and a chunk must not draw anything that counts."""

    def request(index: int) -> GenerateRequest:
        text = f"{index} " + "one word after another " * 40
        return GenerateRequest(segments=[TextSegment(text=text)], max_tokens=12, seed=index)

    together = await asyncio.gather(*(policy.generate(request(index)) for index in range(40)))
    num_prompt_tokens = sum(len(ids) for turn in together for ids in turn.segment_token_ids)
    assert num_prompt_tokens > 3 * 4096
    for index in (0, 17, 39):
        alone = await policy.generate(request(index))
        assert alone.token_ids == together[index].token_ids


def test_vllms_own_seeds_are_refused_with_the_reason(policy_server: RunningPolicy) -> None:
    with openai.OpenAI(base_url=f"{policy_server.url}/v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError, match="/medvr/v1/generate"):
            client.completions.create(model="medvr-policy", prompt="A", max_tokens=4, seed=1)
        answered = client.completions.create(model="medvr-policy", prompt="A", max_tokens=4)
    assert answered.usage is not None
