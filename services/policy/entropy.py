"""Where the logits are: exact H_t, the choice of the next token, and who is waiting for them.

Runs in vLLM's worker process. Legend: r rows (requests of a step), v vocabulary, m measured rows.

The next token of a measured request is chosen here and vLLM is left no other: greedily, drawn, or
as it was given. A draw is a function of (seed, position, distribution) alone.

Invariant: a request's record holds one entry per *position*, addressed by how many tokens the
request has sampled so far. A row that is computed twice (a chunk of a long prompt, a request that
was put back by a weight swap) therefore overwrites its own position and never shifts the others,
and draws again with the same random numbers.
Lifecycle: `begin` when the request enters the batch, `take(final=True)` when its response is made;
what nobody takes (a caller that went away) falls out of the bounded table.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import torch

MAX_RECORDS = 8192
_MASK_64 = 2**64 - 1
_STEPS_PER_FLUSH = 32


def entropy_nats(logits_rv: torch.Tensor) -> torch.Tensor:
    """H_t = −Σ_j p_{t,j} ln p_{t,j} (METHOD.md, EVR) of each row, exact over the vocabulary.

    Forbidden tokens carry −inf and count as p = 0. Returns float32 [R].
    """
    return torch.special.entr(torch.softmax(logits_rv, dim=-1, dtype=torch.float32)).sum(dim=-1)


class Choice(msgspec.Struct, frozen=True):
    """How a request's tokens are chosen; greedily if neither is given."""

    seed: int | None = None
    """Drawn from the temperature-1 distribution, with random numbers of this seed."""
    forced_token_ids: list[int] | None = None
    """Tokens the request must take, one per position."""


@dataclass(slots=True, eq=False)
class Record:
    """What one request has shown so far, one entry per chosen token."""

    key: str
    output_token_ids: list[int]
    """The engine's own growing list of sampled tokens: its length is the current position."""
    choice: Choice
    entropies_nats: list[float] = field(default_factory=list[float])
    logprobs: list[float] = field(default_factory=list[float])
    """ln p of each chosen token, before it was left the only one."""

    @property
    def forced_token_id(self) -> int | None:
        """The token it must take now, if it was given one."""
        given, position = self.choice.forced_token_ids, len(self.output_token_ids)
        return given[position] if given is not None and position < len(given) else None


def _put(values: list[float], position: int, value: float) -> None:
    if position < len(values):
        values[position] = value
    else:
        values.append(value)


class EntropyTable:
    """Records by key, and the steps whose entropies are not yet in them.

    Entropies stay tensors for a few steps and are copied together: one device synchronisation per
    `_STEPS_PER_FLUSH` steps or per `take`, not per step.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._pending: list[tuple[torch.Tensor, list[tuple[Record, int]]]] = []
        """Of each step: [2, M] entropies and log-probabilities; record and position by column."""

    def begin(self, key: str, output_token_ids: list[int], choice: Choice) -> Record:
        """The record of a request that enters the batch, for the first time or again."""
        record = self._records.get(key)
        if record is None:
            record = Record(key, output_token_ids, choice)
            self._records[key] = record
            while len(self._records) > MAX_RECORDS:
                self._records.popitem(last=False)
        record.output_token_ids = output_token_ids
        return record

    def add_step(self, measured_2m: torch.Tensor, records: Sequence[Record]) -> None:
        """Figures of one step; positions are read now, values are copied later."""
        places = [(record, len(record.output_token_ids)) for record in records]
        self._pending.append((measured_2m, places))
        if len(self._pending) >= _STEPS_PER_FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        entropies, logprobs = torch.cat([figures for figures, _ in self._pending], dim=1).tolist()
        places = [place for _, of_step in self._pending for place in of_step]
        for (record, position), entropy, logprob in zip(places, entropies, logprobs, strict=True):
            _put(record.entropies_nats, position, entropy)
            _put(record.logprobs, position, logprob)
        self._pending.clear()

    def take(self, key: str, start: int, *, final: bool) -> tuple[list[float], list[float]]:
        """Entropies and log-probabilities from position `start` on; `final` drops the record.

        An unknown key gives two empty lists.
        """
        self._flush()
        record = self._records.pop(key, None) if final else self._records.get(key)
        if record is None:
            return [], []
        return record.entropies_nats[start:], record.logprobs[start:]


def noise_seed(seed: int, position: int) -> int:
    """Seed of the random numbers at one position: splitmix64's finaliser over both, 64 bits."""
    mixed = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return mixed ^ (mixed >> 31)


class Chooser:
    """Measures the rows of a step and chooses their next tokens."""

    def __init__(self, table: EntropyTable, device: torch.device) -> None:
        self._table = table
        self._generator = torch.Generator(device)

    def choose(self, logits_rv: torch.Tensor, record_by_row: dict[int, Record]) -> None:
        """Record H_t and ln p of each row's choice, then make it the only one; in place."""
        rows, records = list(record_by_row), list(record_by_row.values())
        whole = len(rows) == logits_rv.shape[0] and rows == sorted(rows)
        at = torch.tensor(rows, device=logits_rv.device)
        logits_mv = logits_rv if whole else logits_rv[at]
        logprobs_mv = torch.log_softmax(logits_mv, dim=-1, dtype=torch.float32)
        chosen_m = self._chosen(logprobs_mv, records)
        logprobs_m = logprobs_mv.gather(1, chosen_m[:, None])[:, 0]
        self._table.add_step(torch.stack([entropy_nats(logits_mv), logprobs_m]), records)
        logits_rv[at] = -torch.inf
        logits_rv[at, chosen_m] = 0.0

    def _chosen(self, logprobs_mv: torch.Tensor, records: Sequence[Record]) -> torch.Tensor:
        """[M] token ids. Drawing is the Gumbel-max trick: argmax of ln p − ln E, E ~ Exp(1)."""
        scores_mv = logprobs_mv
        drawn = [m for m, record in enumerate(records) if record.choice.seed is not None]
        if drawn:
            noise_mv = torch.ones_like(logprobs_mv)
            for m in drawn:
                seed, position = records[m].choice.seed, len(records[m].output_token_ids)
                assert seed is not None
                self._generator.manual_seed(noise_seed(seed, position))
                noise_mv[m].exponential_(generator=self._generator)
            scores_mv = logprobs_mv - noise_mv.log()
        chosen_m = scores_mv.argmax(dim=-1)
        forced = [(m, record.forced_token_id) for m, record in enumerate(records)]
        forced = [(m, token_id) for m, token_id in forced if token_id is not None]
        if forced:
            places, token_ids = torch.tensor(forced, device=chosen_m.device).T
            chosen_m[places] = token_ids
        return chosen_m


TABLE = EntropyTable()
"""The one table of a worker process: vLLM builds the logits processor and the worker extension
apart from each other, and this is where they meet."""
