"""Floating-point operations of a step, counted from the trees that are computed.

The formulas are those of the trainer's dry run (`services.trainer.dry_run.flops`), which has means
of what is expected; here are the sums over what is there. Nothing that is computed twice is
counted twice: with gradient checkpointing the arithmetic is more than that.
"""

from collections.abc import Iterable, Sequence

from services.trainer.dry_run.flops import Passes, StepFlops, Work, count_flops
from services.trainer.dry_run.shape import ModelShape
from services.trainer.dry_run.tokens import StepTokens
from services.trainer.packing import Bundle
from services.trainer.sample import PROMPT, TrainingSample
from services.trainer.tree import TokenTree


def step_flops(
    shape: ModelShape,
    groups: Sequence[Sequence[TrainingSample]],
    bundles: Sequence[Bundle],
    *,
    lora: bool = False,
    share_images: bool = True,
) -> StepFlops:
    """FLOPs of one update on these groups, computed as these bundles.

    Without `share_images` every trajectory encodes its own, however often they are the same.
    """
    passes = Passes(
        updates=1,
        gradient_checkpointing=False,
        has_reference=False,
        lora=lora,
        freeze_vision=False,
        logits_in_pieces=False,
    )
    work = _work([tree for b in bundles for pack in b for tree in pack], share_images=share_images)
    return count_flops(shape, _means(groups), work, passes)


def _work(trees: Sequence[TokenTree], *, share_images: bool) -> Work:
    samples = [sample for tree in trees for sample in tree.samples]
    views = [sample.images[0].image for sample in samples]
    crops = [span.image for sample in samples for span in sample.images[1:]]
    return Work(
        tokens=sum(tree.num_tokens for tree in trees),
        trained_tokens=sum(map(_trained_tokens, trees)),
        token_pairs=sum(map(_token_pairs, trees)),
        view_images=_count(views, distinct=share_images),
        crop_images=_count(crops, distinct=share_images),
    )


def _count(names: Sequence[str], *, distinct: bool) -> int:
    return len(set(names) if distinct else names)


def _trained_tokens(tree: TokenTree) -> int:
    """Distinct tokens with a loss."""
    return len(
        {
            int(token)
            for sample, path in zip(tree.samples, tree.paths, strict=True)
            for token in path[sample.loss_mask]
        }
    )


def _token_pairs(tree: TokenTree) -> float:
    """Of a token and one it sees, itself counted half."""
    ends: list[int] = []
    pairs = 0.0
    for node in tree.nodes:
        before = 0 if node.parent is None else ends[node.parent]
        own = node.end - node.start
        ends.append(before + own)
        pairs += own * before + own**2 / 2
    return pairs


def _means(groups: Sequence[Sequence[TrainingSample]]) -> StepTokens:
    """What the formulas need of a mean trajectory: how large its images are."""
    samples = [sample for group in groups for sample in group]
    crops = [span.size.num_image_tokens for sample in samples for span in sample.images[1:]]
    prompt = samples[0].lineage[PROMPT]
    sampled = _mean(sample.num_trained_tokens for sample in samples)
    return StepTokens(
        groups_per_step=len(groups),
        group_size=len(groups[0]),
        branches_per_group=0,
        prompt_tokens=prompt,
        view_tokens=samples[0].images[0].size.num_image_tokens,
        crop_tokens=round(_mean(crops)),
        crops=len(crops) / len(samples),
        sampled_tokens=sampled,
        completion_tokens=_mean(len(sample.input_ids) - prompt for sample in samples),
        inherited_tokens=0.0,
        inherited_sampled_tokens=0.0,
        inherited_crops=0.0,
    )


def _mean(numbers: Iterable[float]) -> float:
    held = list(numbers)
    return sum(held) / max(1, len(held))
