"""The text that `--dry-run` prints."""

from collections.abc import Sequence

from services.trainer.dry_run.flops import (
    Passes,
    StepFlops,
    Work,
    count_flops,
    work_one_by_one,
    work_tree,
)
from services.trainer.dry_run.memory import (
    BFLOAT16_BYTES,
    FLOAT32_BYTES,
    MemoryEstimate,
    MemorySettings,
    estimate_memory,
    text_activation_bytes,
    trained_parameters,
    vision_activation_bytes,
)
from services.trainer.dry_run.origins import origins
from services.trainer.dry_run.shape import ModelShape, find_checkpoint, read_shape
from services.trainer.dry_run.tokens import AtOnce, StepTokens, count_at_once, count_step
from services.trainer.model import LOGITS_AT_ONCE
from services.trainer.settings import DryRunSettings
from shared.weights import read_policy_manifest

Row = tuple[str, ...]


def report(settings: DryRunSettings, argv: Sequence[str]) -> str:
    """The whole report. Raises `WeightsError` if the model's configuration is not here."""
    checkpoint = find_checkpoint(settings.model)
    shape = read_shape(checkpoint)
    step = count_step(settings, read_policy_manifest(checkpoint))
    at_once = count_at_once(settings, step)
    parts = [
        _table("settings", [tuple(setting) for setting in origins(settings, argv)], "<<<"),
        _table("tokens of a step", _token_rows(step, shape), "<><"),
        _table("model", _model_rows(settings, shape), "<><"),
        _memory(settings, shape, at_once),
        _table("FLOPs of a step", _flop_rows(settings, shape, step, at_once), "<>>"),
    ]
    return "\n".join(parts) + "\nNothing was loaded, fetched or written; Redis was not asked.\n"


def memory_settings(settings: DryRunSettings, *, checkpointing: bool, lora: int) -> MemorySettings:
    """The settings that memory depends on, with two of them varied."""
    return MemorySettings(
        number_bytes=BFLOAT16_BYTES if settings.dtype == "bfloat16" else FLOAT32_BYTES,
        gradient_checkpointing=checkpointing,
        has_reference=settings.kl_beta > 0,
        world_size=settings.world_size,
        lora_rank=lora,
        freeze_vision=settings.freeze_vision,
        logits_at_once=LOGITS_AT_ONCE,
    )


def _token_rows(step: StepTokens, shape: ModelShape) -> list[Row]:
    rows: list[Row] = [
        ("groups", f"{step.groups_per_step:,}", ""),
        ("trajectories", f"{step.step_trajectories:,}", _branches(step)),
        ("prompt", f"{step.prompt_tokens:,}", f"of which {step.view_tokens:,} show the image"),
        (
            "completion",
            f"{step.completion_tokens:,.0f}",
            f"{step.sampled_tokens:,.0f} sampled, {step.crops:g} × {step.crop_tokens:,} of crops",
        ),
        ("trajectory", f"{step.tokens:,.0f}", _fits(step, shape)),
        ("inherited by a branch", f"{step.inherited_tokens:,.0f}", "after the prompt"),
        ("step, one by one", f"{step.step_tokens_one_by_one:,.0f}", _sampled(step, tree=False)),
        ("step, as trees", f"{step.step_tokens_tree:,.0f}", _sampled(step, tree=True)),
        (
            "ratio",
            f"{step.ratio:.2f}",
            f"the text model gains no more by trees; an endless group {step.ratio_limit:.2f}",
        ),
    ]
    return rows


def _branches(step: StepTokens) -> str:
    return f"{step.group_size} a group, {step.branches_per_group} of them branches"


def _fits(step: StepTokens, shape: ModelShape) -> str:
    if step.tokens > shape.max_tokens:
        return f"TOO LONG: the model takes {shape.max_tokens:,}"
    return f"the model takes {shape.max_tokens:,}"


def _sampled(step: StepTokens, *, tree: bool) -> str:
    sampled = step.step_sampled_tree if tree else step.step_sampled_one_by_one
    images = step.step_images_tree if tree else step.step_images_one_by_one
    return f"{sampled:,.0f} trained, {images:,.0f} images"


def _model_rows(settings: DryRunSettings, shape: ModelShape) -> list[Row]:
    text, vision = shape.text, shape.vision
    how = memory_settings(
        settings, checkpointing=settings.gradient_checkpointing, lora=settings.lora_rank
    )
    trained = trained_parameters(shape, how)
    which = "all but vision" if settings.freeze_vision else "all"
    if settings.lora_rank:
        which = f"LoRA of rank {settings.lora_rank}"
    rows: list[Row] = [
        ("parameters", f"{shape.parameters:,}", f"{shape.parameters / 1e9:.3g} B"),
        ("of text blocks", f"{text.num_blocks * text.parameters:,}", f"{text.num_blocks} blocks"),
        (
            "of vision",
            f"{shape.vision_parameters:,}",
            f"{vision.num_blocks} blocks, patches, merger",
        ),
        ("of embedding", f"{shape.embedding:,}", "" if shape.head else "also the output head"),
        ("of output head", f"{shape.head:,}", ""),
        ("trained", f"{trained:,}", which),
    ]
    return rows


def _memory(settings: DryRunSettings, shape: ModelShape, at_once: AtOnce) -> str:
    """One column for each way to compute; the chosen one is starred."""
    ranks = dict.fromkeys((0, settings.lora_rank))
    ways = [
        memory_settings(settings, checkpointing=checkpointing, lora=rank)
        for rank in ranks
        for checkpointing in (False, True)
    ]
    chosen = memory_settings(
        settings, checkpointing=settings.gradient_checkpointing, lora=settings.lora_rank
    )
    estimates = [estimate_memory(shape, at_once, how) for how in ways]
    header = ("", *(_way(how) + (" *" if how == chosen else "") for how in ways))
    rows: list[Row] = [
        header,
        *(
            (label, *(readable_bytes(value) for value in values))
            for label, *values in _memory_lines(estimates)
        ),
        (
            "activations of a token",
            *(readable_bytes(text_activation_bytes(shape, how)) for how in ways),
        ),
        (
            "activations of a patch",
            *(readable_bytes(vision_activation_bytes(shape, how)) for how in ways),
        ),
    ]
    title = (
        f"memory of one process of {settings.world_size}, {settings.dtype}; at once "
        f"{at_once.tokens:,.0f} tokens, {at_once.patches:,.0f} patches"
    )
    note = "  * as set. Not counted: CUDA's context and fragmentation (2 GiB and a tenth)\n"
    if settings.cpu_offload:
        held = readable_bytes(estimate_memory(shape, at_once, chosen).held)
        note += f"  {held} of the peak, weights to reference, lie in host memory (cpu_offload)\n"
    return _table(title, rows, "<" + ">" * len(ways)) + note


def _memory_lines(estimates: Sequence[MemoryEstimate]) -> list[tuple[str, *tuple[int, ...]]]:
    copies = "copies, gathered shards"
    return [
        ("weights", *(e.weights for e in estimates)),
        ("gradients", *(e.gradients for e in estimates)),
        ("AdamW's moments", *(e.moments for e in estimates)),
        ("reference", *(e.reference for e in estimates)),
        ("activations", *(e.activations for e in estimates)),
        (copies, *(e.copies for e in estimates)),
        ("working memory", *(e.working for e in estimates)),
        ("  logits at once", *(e.logits for e in estimates)),
        ("peak", *(e.peak for e in estimates)),
    ]


def _way(how: MemorySettings) -> str:
    trained = f"LoRA {how.lora_rank}" if how.lora_rank else "full"
    return f"{trained}, checkpointing" if how.gradient_checkpointing else f"{trained}, plain"


def _flop_rows(
    settings: DryRunSettings, shape: ModelShape, step: StepTokens, at_once: AtOnce
) -> list[Row]:
    passes = Passes(
        updates=settings.updates_per_batch,
        gradient_checkpointing=settings.gradient_checkpointing,
        has_reference=settings.kl_beta > 0,
        lora=settings.lora_rank > 0,
        freeze_vision=settings.freeze_vision,
        logits_in_pieces=at_once.sampled_tokens * shape.vocabulary > LOGITS_AT_ONCE,
    )

    def of(work: Work) -> StepFlops:
        return count_flops(shape, step, work, passes)

    ways = [of(work_one_by_one(step)), of(work_tree(step))]
    rate = settings.tflops * 1e12 * settings.world_size
    seconds = f"seconds at {settings.world_size} · {settings.tflops:g} TFLOP/s"
    rows: list[Row] = [
        ("TFLOP", "one by one", "as trees"),
        ("text blocks", *(_tera(f.text) for f in ways)),
        ("their attention", *(_tera(f.text_attention) for f in ways)),
        ("output head", *(_tera(f.head) for f in ways)),
        ("vision", *(_tera(f.vision) for f in ways)),
        ("its attention", *(_tera(f.vision_attention) for f in ways)),
        ("all", *(_tera(f.total) for f in ways)),
        (seconds, *(f"{f.total / rate:,.3g}" for f in ways)),
    ]
    return rows


def readable_bytes(num_bytes: float) -> str:
    """`1.50 GiB`, or the largest unit there is one of."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes / 2**10:,.2f} KiB" if num_bytes else "0"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.4g}"


def _table(title: str, rows: Sequence[Row], align: str) -> str:
    """Rows under a title; `align` has `<` or `>` for each column."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    template = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    lines = ["  " + template.format(*row) for row in rows]
    return "\n".join([title, *(line.rstrip() for line in lines)]) + "\n"
