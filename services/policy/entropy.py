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
_BLOCK = 512
"""Tokens whose probabilities are summed before they are cumulated."""


def entropy_nats(probabilities_rv: torch.Tensor) -> torch.Tensor:
    """H_t = −Σ_j p_{t,j} ln p_{t,j} (METHOD.md, EVR) of each row, exact over the vocabulary.

    Takes and returns float32; p = 0 (a forbidden token) adds nothing. Returns [R].
    """
    return torch.special.entr(probabilities_rv).sum(dim=-1)


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


def uniform(seed: int, position: int) -> float:
    """The random number of one position, in [0, 1): splitmix64 of both, its upper 53 bits."""
    mixed = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((mixed ^ (mixed >> 31)) >> 11) * 2.0**-53


class Chooser:
    """Measures the rows of a step and chooses their next tokens."""

    def __init__(self, table: EntropyTable) -> None:
        self._table = table

    def choose(self, logits_rv: torch.Tensor, record_by_row: dict[int, Record]) -> None:
        """Record H_t and ln p of each row's choice, then make it the only one; in place.

        Passes over the vocabulary are what this costs, so one softmax serves all, and ln p is
        taken from the logits: x_j − ln Σ exp x, which is x_k − ln p_k of the likeliest token k.
        """
        rows, records = list(record_by_row), list(record_by_row.values())
        whole = len(rows) == logits_rv.shape[0] and rows == sorted(rows)
        at = torch.tensor(rows, device=logits_rv.device)
        logits_mv = logits_rv if whole else logits_rv[at]
        probabilities_mv = torch.softmax(logits_mv, dim=-1, dtype=torch.float32)
        top_m, likeliest_m = probabilities_mv.max(dim=-1)
        chosen_m = _chosen(probabilities_mv, likeliest_m, records)
        log_sum_m = _picked(logits_mv, likeliest_m) - top_m.log()
        logprobs_m = _picked(logits_mv, chosen_m) - log_sum_m
        figures_2m = torch.stack([entropy_nats(probabilities_mv), logprobs_m])
        self._table.add_step(figures_2m, records)
        if whole:
            logits_rv.fill_(-torch.inf)
        else:
            logits_rv.index_fill_(0, at, -torch.inf)
        logits_rv[at, chosen_m] = 0.0


def _picked(values_mv: torch.Tensor, token_ids_m: torch.Tensor) -> torch.Tensor:
    return values_mv.gather(1, token_ids_m[:, None])[:, 0].float()


def _chosen(
    probabilities_mv: torch.Tensor, likeliest_m: torch.Tensor, records: Sequence[Record]
) -> torch.Tensor:
    """[M] token ids: drawn, given, or the likeliest."""
    chosen_m = likeliest_m.clone()
    positions = [len(record.output_token_ids) for record in records]
    drawn = [
        (m, uniform(record.choice.seed, position))
        for m, (record, position) in enumerate(zip(records, positions, strict=True))
        if record.choice.seed is not None
    ]
    if drawn:
        places = [m for m, _ in drawn]
        weights_mv = probabilities_mv if len(drawn) == len(records) else probabilities_mv[places]
        uniforms = torch.tensor([u for _, u in drawn], dtype=torch.float64)
        chosen_m[places] = draw(weights_mv, uniforms.to(weights_mv.device))
    forced = [(m, record.forced_token_id) for m, record in enumerate(records)]
    forced = [(m, token_id) for m, token_id in forced if token_id is not None]
    if forced:
        given, token_ids = torch.tensor(forced, device=chosen_m.device).T
        chosen_m[given] = token_ids
    return chosen_m


def draw(weights_mv: torch.Tensor, uniforms_m: torch.Tensor) -> torch.Tensor:
    """[M] indices by inverse transform sampling: the first whose cumulated weight exceeds u·Σ.

    First the block is found, then the index in it, so that only sums of blocks are cumulated over
    the vocabulary. Cumulated is in float64, so that the rarest of 152,064 tokens keeps its share.
    One of weight 0 is never drawn.
    """
    num_whole = weights_mv.shape[1] // _BLOCK
    whole_mnb = weights_mv[:, : num_whole * _BLOCK].unflatten(1, (num_whole, _BLOCK))
    rest_mb = weights_mv[:, num_whole * _BLOCK :]
    sums_mn = torch.cat([whole_mnb.sum(dim=2), rest_mb.sum(dim=1, keepdim=True)], dim=1)
    block_m, share_m = _first_over(sums_mn, uniforms_m)
    indices_mb = (block_m[:, None] * _BLOCK) + torch.arange(_BLOCK, device=weights_mv.device)
    is_outside_mb = indices_mb >= weights_mv.shape[1]
    inside_mb = weights_mv.gather(1, indices_mb.clamp(max=weights_mv.shape[1] - 1))
    place_m, _ = _first_over(inside_mb.masked_fill(is_outside_mb, 0.0), share_m)
    return block_m * _BLOCK + place_m


def _first_over(
    weights_mn: torch.Tensor, uniforms_m: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first index whose cumulated weight exceeds u·Σ, and how far u reaches into it, < 1."""
    cumulated_mn = weights_mn.cumsum(dim=1, dtype=torch.float64)
    thresholds_m1 = (uniforms_m * cumulated_mn[:, -1])[:, None]
    first_m1 = torch.searchsorted(cumulated_mn, thresholds_m1, right=True)
    weights_m1 = weights_mn.gather(1, first_m1).double()
    begins_m1 = cumulated_mn.gather(1, first_m1) - weights_m1
    shares_m1 = ((thresholds_m1 - begins_m1) / weights_m1).clamp(0.0, 1.0 - 2.0**-53)
    return first_m1[:, 0], shares_m1[:, 0]


TABLE = EntropyTable()
"""The one table of a worker process: vLLM builds the logits processor and the worker extension
apart from each other, and this is where they meet."""
