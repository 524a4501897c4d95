"""An optimizer batch, cut into packs: trees in a row, as many as a token budget holds.

A tree that is larger than the budget is split by trajectories, and its prefix is computed in every
part; a single trajectory that is larger is a pack of its own. Packs that show the same image are
bundled, so that the vision tower sees each image once per batch.
"""

from collections.abc import Sequence
from itertools import accumulate

from services.trainer.sample import TrainingSample
from services.trainer.tree import TokenTree, build_tree, num_new_tokens

Pack = list[TokenTree]
Bundle = list[Pack]


def pack_groups(
    groups: Sequence[Sequence[TrainingSample]], image_token_id: int, max_tokens: int
) -> list[Bundle]:
    """All trajectories of all groups, each once, in packs of at most `max_tokens` tokens."""
    bundles: list[Bundle] = []
    whole: list[TokenTree] = []
    for samples in groups:
        parts = [build_tree(part, image_token_id) for part in split(samples, max_tokens)]
        if len(parts) == 1:
            whole += parts
        else:
            bundles.append([[part] for part in parts])
    return _joined([*bundles, *([pack] for pack in fill(whole, max_tokens))])


def split(samples: Sequence[TrainingSample], max_tokens: int) -> list[list[TrainingSample]]:
    """Runs of trajectories whose trees keep the budget; one that cannot is a run of its own."""
    parts: list[list[TrainingSample]] = []
    rest = list(samples)
    while rest:
        sizes = list(accumulate(num_new_tokens(rest)))
        num = max(1, sum(size <= max_tokens for size in sizes))
        parts.append(rest[:num])
        rest = rest[num:]
    return parts


def fill(trees: Sequence[TokenTree], max_tokens: int) -> list[Pack]:
    """First fit, the largest trees first."""
    packs: list[Pack] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda t: -t.num_tokens):
        fits = (place for place, left in enumerate(room) if tree.num_tokens <= left)
        place = next(fits, len(packs))
        if place == len(packs):
            packs.append([])
            room.append(max_tokens)
        packs[place].append(tree)
        room[place] -= tree.num_tokens
    return packs


def _joined(bundles: Sequence[Bundle]) -> list[Bundle]:
    """Bundles that show an image in common become one."""
    joined: list[tuple[set[str], Bundle]] = []
    for bundle in bundles:
        names = {span.image for pack in bundle for tree in pack for span in tree.images}
        apart = [(seen, held) for seen, held in joined if not seen & names]
        together = [(seen, held) for seen, held in joined if seen & names]
        names = names.union(*(seen for seen, _ in together))
        packs = [pack for _, held in together for pack in held] + bundle
        joined = [*apart, (names, packs)]
    return [bundle for _, bundle in joined]
