# pyright: basic
"""What an optimizer batch was like, added up over packs, then over ranks."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from services.trainer.batch import PackTensors
from services.trainer.loss import TokenLoss
from services.trainer.world import World

_SUMS = (
    "loss", "kl_reference", "mismatch_kl", "logprob_difference", "clip_fraction",
    "is_cap_fraction", "num_tokens_trained", "num_tokens", "num_tokens_computed",
    "num_trajectories",
)  # fmt: skip

PERCENTILES = (1, 50, 99)


@dataclass
class StepFigures:
    """Of one optimizer batch; means weigh tokens as the loss does.

    With several updates on the batch they are means over the updates too.
    """

    loss: float = 0.0
    kl_reference: float = 0.0
    mismatch_kl: float = 0.0
    logprob_difference: float = 0.0
    """Mean |ln π_old − ln μ|."""
    clip_fraction: float = 0.0
    is_cap_fraction: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0
    total_weight: float = 1.0
    """Sum of the batch's token weights."""
    num_tokens_trained: int = 0
    num_tokens: int = 0
    """Of all trajectories, each counted whole: what computing them one by one would take."""
    num_tokens_computed: int = 0
    """Of the trees."""
    num_trajectories: int = 0
    ratio: list[float] = field(default_factory=list)
    """π_θ/π_old over trained tokens at the last update: its percentiles 1, 50, 99."""
    mismatch: list[float] = field(default_factory=list)
    """π_old/μ over trained tokens, likewise."""
    seconds: dict[str, float] = field(
        default_factory=lambda: {"prepare": 0.0, "forward_backward": 0.0, "optimizer": 0.0}
    )
    _ratios: list[npt.NDArray[np.float32]] = field(default_factory=list)
    _mismatches: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @contextmanager
    def timed(self, phase: str) -> Generator[None]:
        """Add what this takes to a phase, less what other phases take inside it."""
        inside = sum(self.seconds.values())
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds[phase] += elapsed - (sum(self.seconds.values()) - inside)

    def add(
        self,
        pack: PackTensors,
        terms: TokenLoss,
        old_logprobs_N: Tensor,
        num_updates: int,
    ) -> None:
        """Add a pack's share of the means over all its updates."""
        difference_N = old_logprobs_N - pack.sampled_logprobs_N
        weights_N = pack.weights_N / num_updates
        self.loss += float((terms.loss_N.detach() * weights_N).sum())
        weights_N = weights_N / self.total_weight  # Dr. GRPO's do not add up to 1
        self.kl_reference += float((terms.kl_reference_N * weights_N).sum())
        self.mismatch_kl += float((terms.mismatch_kl_N * weights_N).sum())
        self.logprob_difference += float((difference_N.abs() * weights_N).sum())
        self.clip_fraction += float((terms.is_clipped_N * weights_N).sum())
        self.is_cap_fraction += float((terms.is_capped_N * weights_N).sum())
        self._ratios.append(terms.ratio_N.float().cpu().numpy())
        self._mismatches.append(difference_N.exp().float().cpu().numpy())

    def next_update(self) -> None:
        """The ratios are those of the last update alone."""
        self._ratios.clear()
        self._mismatches.clear()

    def gather(self, world: World) -> None:
        """From one rank's figures to the batch's; percentiles are the leader's alone."""
        for name, total in zip(
            _SUMS, world.sums([float(getattr(self, name)) for name in _SUMS]), strict=True
        ):
            setattr(self, name, type(getattr(self, name))(total))
        for name, own in (("ratio", self._ratios), ("mismatch", self._mismatches)):
            every = world.gathered(np.concatenate([np.empty(0, np.float32), *own]))
            if every:
                setattr(self, name, np.percentile(np.concatenate(every), PERCENTILES).tolist())
