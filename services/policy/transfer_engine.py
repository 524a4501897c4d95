"""A vLLM worker's end of a weight transfer (docs/decisions/0010), as an engine of vLLM's own kind.

vLLM gives the life cycle: `--weight-transfer-config` names the engine, a worker makes it beside its
model, and calls init, start, update, finish and shutdown. Its NCCL engine would do, but it waits
without limit for a trainer that is gone, unpickles what answers on the trainer's port, and needs
vLLM in the trainer. This one keeps the limits of `TransferGroup`, and runs on CPU as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

from shared.transfer import TransferStart
from shared.transfer_group import TransferGroup, reach_store


@dataclass
class TransferInitInfo(WeightTransferInitInfo):
    """What a worker needs to join a transfer; vLLM makes it from a dict."""

    first_rank: int
    """Of this replica's workers."""
    start: dict[str, Any]
    """A `TransferStart`."""


@dataclass
class TransferUpdateInfo(WeightTransferUpdateInfo):
    """The tensors in the order in which they come; vLLM makes it from a dict."""

    tensors: list[tuple[str, str, tuple[int, ...]]]
    """`TensorLayout`s."""


class TransferEngine(WeightTransferEngine[TransferInitInfo, TransferUpdateInfo]):
    """Receives one version at a time; between transfers it holds nothing."""

    init_info_cls = TransferInitInfo
    update_info_cls = TransferUpdateInfo

    _group: TransferGroup | None = None

    def init_transfer_engine(self, init_info: TransferInitInfo) -> None:
        """Meet the trainer and the other replicas."""
        start = msgspec.convert(init_info.start, TransferStart)
        rank = init_info.first_rank + self.parallel_config.rank
        self._group = TransferGroup(reach_store(start), rank, start)

    def start_weight_update(self) -> None:
        """Tensors of a checkpoint are to come."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load; the base class waits for an accelerator, which a CPU has not."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: TransferUpdateInfo) -> None:
        """Load each tensor as it comes, and go on when all ranks have all."""
        group = self._group
        assert group is not None

        def received() -> Iterator[tuple[str, torch.Tensor]]:
            for name, dtype, shape in update_info.tensors:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                group.broadcast(tensor)
                yield name, tensor

        cast(Any, self.model).load_weights(received())
        group.finish()

    def finish_weight_update(self) -> None:
        """Everything came."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group, whatever became of it."""
        if self._group is not None:
            self._group.close()
            self._group = None


def register_transfer_engine(name: str) -> None:
    """Make it known to vLLM under this name; once in each process."""
    WeightTransferEngineFactory.register_engine(name, TransferEngine)
