"""A trainer that sends the first tensors of a version and then does nothing; killed by its test.

Arguments: Redis URL, the channel's pointer as JSON, a checkpoint folder.
"""

import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import redis
import torch

from services.trainer.transfer import GroupTransfer, published_tensors
from shared.weights import decode_pointer


def some(checkpoint: Path, num_tensors: int) -> Iterator[tuple[str, torch.Tensor]]:
    yield from islice(published_tensors(checkpoint), num_tensors)
    sys.stdout.write("half\n")
    sys.stdout.flush()
    threading.Event().wait()


def main() -> None:
    url, pointer, checkpoint = sys.argv[1:]
    with redis.Redis.from_url(url) as client:
        transfer = GroupTransfer(
            client,
            channel="policy:train",
            backend="gloo",
            device=torch.device("cpu"),
            answer_s=10.0,
            timeout_s=600.0,
        )
        transfer.offer(decode_pointer(pointer), some(Path(checkpoint), 20))


if __name__ == "__main__":
    main()
