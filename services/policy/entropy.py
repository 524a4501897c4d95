"""Exact entropies where the logits are: masking, H_t, forced tokens, and who is waiting for them.

Runs in vLLM's worker process. Legend: r rows (requests of a step), v vocabulary.

Invariant: a request's record holds one entry per *position*, addressed by how many tokens the
request has sampled so far. A row that is computed twice (a chunk of a long prompt, a request that
was put back by a weight swap) therefore overwrites its own position and never shifts the others.
Lifecycle: `begin` when the request enters the batch, `take(final=True)` when its response is made;
what nobody takes (a caller that went away) falls out of the bounded table.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

MAX_RECORDS = 8192
_STEPS_PER_FLUSH = 32


def entropy_nats(logits_rv: torch.Tensor) -> torch.Tensor:
    """H_t = −Σ_j p_{t,j} ln p_{t,j} (METHOD.md, EVR) of each row, exact over the vocabulary.

    Forbidden tokens carry −inf and count as p = 0. Returns float32 [R].
    """
    return torch.special.entr(torch.softmax(logits_rv, dim=-1, dtype=torch.float32)).sum(dim=-1)


@dataclass(slots=True, eq=False)
class Record:
    """What one request has shown so far, one entry per sampled (or forced) token."""

    key: str
    output_token_ids: list[int]
    """The engine's own growing list of sampled tokens: its length is the current position."""
    forced_token_ids: list[int] | None
    """Tokens the request must take, one per position; None for an ordinary request."""
    entropies_nats: list[float] = field(default_factory=list[float])
    forced_logprobs: list[float] = field(default_factory=list[float])
    """ln p of each forced token before it was forced; empty for an ordinary request."""


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
        self._pending: list[tuple[torch.Tensor, list[tuple[int, Record, int]]]] = []

    def begin(
        self, key: str, output_token_ids: list[int], forced_token_ids: list[int] | None
    ) -> Record:
        """The record of a request that enters the batch, for the first time or again."""
        record = self._records.get(key)
        if record is None:
            record = Record(key, output_token_ids, forced_token_ids)
            self._records[key] = record
            while len(self._records) > MAX_RECORDS:
                self._records.popitem(last=False)
        record.output_token_ids = output_token_ids
        return record

    def add_step(self, entropies_r: torch.Tensor, record_by_row: dict[int, Record]) -> None:
        """Entropies of one step; positions are read now, values are copied later."""
        rows = [
            (row, record, len(record.output_token_ids)) for row, record in record_by_row.items()
        ]
        self._pending.append((entropies_r, rows))
        if len(self._pending) >= _STEPS_PER_FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        values = torch.cat([entropies for entropies, _ in self._pending]).tolist()
        offset = 0
        for entropies, rows in self._pending:
            for row, record, position in rows:
                _put(record.entropies_nats, position, values[offset + row])
            offset += entropies.shape[0]
        self._pending.clear()

    def take(self, key: str, start: int, *, final: bool) -> tuple[list[float], list[float]]:
        """Entropies from position `start` on and all forced logprobs; `final` drops the record.

        An unknown key gives two empty lists.
        """
        self._flush()
        record = self._records.pop(key, None) if final else self._records.get(key)
        if record is None:
            return [], []
        return record.entropies_nats[start:], record.forced_logprobs


def force_tokens(logits_rv: torch.Tensor, record_by_row: dict[int, Record]) -> None:
    """Give all probability to the forced token of each forced row; remember its ln p first."""
    forced: list[tuple[int, Record, int]] = []
    for row, record in record_by_row.items():
        position = len(record.output_token_ids)
        if record.forced_token_ids is not None and position < len(record.forced_token_ids):
            forced.append((row, record, position))
    for row, record, position in forced:
        assert record.forced_token_ids is not None
        token_id = record.forced_token_ids[position]
        logprobs_v = torch.log_softmax(logits_rv[row], dim=-1, dtype=torch.float32)
        _put(record.forced_logprobs, position, float(logprobs_v[token_id]))
        logits_rv[row].fill_(-torch.inf)
        logits_rv[row, token_id] = 0.0


TABLE = EntropyTable()
"""The one table of a worker process: vLLM builds the logits processor and the worker extension
apart from each other, and this is where they meet."""
