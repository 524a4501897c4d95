"""What `--dry-run` says, against models, optimizers and passes that are really made."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from services.trainer.__main__ import main
from services.trainer.batch import collate, collect_images
from services.trainer.dry_run.flops import Passes, count_flops, work_one_by_one, work_tree
from services.trainer.dry_run.memory import (
    LOGIT_BYTES,
    MemorySettings,
    estimate_memory,
    text_activation_bytes,
    trained_parameters,
    vision_activation_bytes,
)
from services.trainer.dry_run.origins import Origin, origins
from services.trainer.dry_run.shape import ModelShape, read_shape, shape_of
from services.trainer.dry_run.tokens import (
    CUT_TOKENS,
    AtOnce,
    StepTokens,
    count_at_once,
    count_step,
)
from services.trainer.images import ImageSource
from services.trainer.model import Policy
from services.trainer.optimizer import build_optimizer
from services.trainer.sample import build_group
from services.trainer.settings import DryRunSettings
from services.trainer.tiny.architecture import build_config, build_model
from services.trainer.tiny.tokenizer import build_tokenizer
from services.trainer.tiny.wording import corpus
from services.trainer.tree import build_tree
from shared.blobs import BlobStore
from shared.geometry import PixelLimits
from shared.weights import DEFAULT_MANIFEST
from tests.trainer.groups import GroupBuilder
from tests.trainer.live_bytes import LiveBytes, saved_bytes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = ROOT / "services" / "trainer" / "tiny" / "base"

QWEN_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
"""Qwen2.5-VL-7B-Instruct, from its public config.json, as flat as there."""

PLAIN = MemorySettings(
    number_bytes=4,
    gradient_checkpointing=False,
    has_reference=True,
    world_size=1,
    lora_rank=0,
    freeze_vision=False,
    logits_at_once=2**26,
)
NOTHING = AtOnce(tokens=0, patches=0, sampled_tokens=0)
ONE_PASS = Passes(
    updates=1,
    gradient_checkpointing=False,
    has_reference=False,
    lora=False,
    freeze_vision=False,
    logits_in_pieces=False,
)


def rehearsal(**assumed: object) -> DryRunSettings:
    return DryRunSettings.model_validate({"model": "x", "run": "r", "dry_run": True, **assumed})


def counted(**assumed: object) -> StepTokens:
    """A view of 100 tokens and crops of 16, unless told otherwise."""
    images = {"view_pixels": 100 * 28**2, "crop_pixels": 16 * 28**2}
    return count_step(rehearsal(**{**images, **assumed}), DEFAULT_MANIFEST)


@cache
def tiny(hidden: int = 128) -> Qwen2_5_VLForConditionalGeneration:
    return build_model(build_config(build_tokenizer(corpus("What?", ("a",))), hidden=hidden), 0)


@cache
def qwen_7b() -> ModelShape:
    return shape_of(Qwen2_5_VLConfig(**QWEN_7B))


def hidden_states(model: Qwen2_5_VLForConditionalGeneration, num_tokens: int) -> torch.Tensor:
    embeds = model.get_input_embeddings()(torch.arange(num_tokens)[None] % 700)
    return model.model.language_model(
        inputs_embeds=embeds,
        position_ids=torch.arange(num_tokens).expand(3, 1, num_tokens),
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state


def image_features(model: Qwen2_5_VLForConditionalGeneration, num_images: int) -> torch.Tensor:
    """Of images of 12 by 12 patches."""
    pixels = torch.zeros(num_images * 144, 1176)
    grid = torch.tensor([[1, 12, 12]] * num_images)
    return torch.cat(list(model.model.get_image_features(pixels, grid).pooler_output))


# -- tokens ---------------------------------------------------------------------------------------


def test_the_token_arithmetic_of_a_small_step_by_hand() -> None:
    step = counted(
        groups_per_step=2,
        group_size=4,
        prompt_text_tokens=50,
        mean_turns=2,
        response_tokens=40,
        observation_text_tokens=10,
    )
    assert step.prompt_tokens == 50 + 100 + 2
    assert step.completion_tokens == 2 * 40 + 16 + 2 + 10
    assert step.inherited_tokens == 40 - CUT_TOKENS
    assert step.step_tokens_one_by_one == 2 * 4 * (152 + 108)
    assert step.step_tokens_tree == 2 * (152 + 4 * 108 - 2 * 17)
    assert (step.step_sampled_one_by_one, step.step_sampled_tree) == (640, 640 - 2 * 2 * 17)
    assert (step.step_images_one_by_one, step.step_images_tree) == (16, 2 * (1 + 4))


def test_the_tree_has_as_many_tokens_as_the_trie_of_such_trajectories() -> None:
    step = counted(groups_per_step=1, group_size=6, mean_turns=4, response_tokens=30)
    turn, shown = 30, 16 + 2 + 41
    prompt = [("prompt", i) for i in range(step.prompt_tokens)]
    bases = [
        prompt + [(f"base {b}", i) for i in range(int(step.completion_tokens))] for b in range(3)
    ]
    branches: list[list[tuple[str, int]]] = []
    for call, base in enumerate(bases):  # one at every call
        cut = step.prompt_tokens + call * (turn + shown) + turn - CUT_TOKENS
        branches.append(base[:cut] + [(f"branch {call}", i) for i in range(len(base) - cut)])
    whole = bases + branches
    prefixes = {tuple(t[:end]) for t in whole for end in range(1, len(t) + 1)}
    assert step.step_tokens_tree == len(prefixes)
    assert step.step_tokens_one_by_one == sum(len(t) for t in whole)
    one_by_one, tree = work_one_by_one(step), work_tree(step)
    assert one_by_one.token_pairs == sum(len(t) ** 2 / 2 for t in whole)
    own = sum(len(p) - 0.5 for p in prefixes)
    spread = turn + shown  # the cuts lie one such apart: their mean square is not their square
    assert tree.token_pairs == own + spread**2


def test_the_ratio_rises_to_its_limit_and_stays_below_the_group_size() -> None:
    steps = [counted(group_size=size) for size in (2, 4, 16, 256, 4096)]
    ratios = [step.ratio for step in steps]
    assert ratios == sorted(ratios)
    assert all(step.ratio < min(step.ratio_limit, step.group_size) for step in steps)
    assert ratios[-1] == pytest.approx(steps[-1].ratio_limit, rel=0.01)


def test_without_crops_nothing_branches_and_only_the_prompt_is_shared() -> None:
    step = counted(mean_turns=1, groups_per_step=1)
    assert step.branches_per_group == 0
    assert step.step_tokens_tree == step.prompt_tokens + 16 * 128


def test_image_sizes_not_given_are_those_of_the_policy_manifest() -> None:
    limits = PixelLimits(28**2, 36 * 28**2)
    manifest = type(DEFAULT_MANIFEST)(
        format=1, name="x", tools=[], view=limits, crop=limits, min_side_px=28, max_turns=5
    )
    step = count_step(rehearsal(), manifest)
    assert (step.view_tokens, step.crop_tokens) == (36, 36)


def test_more_crops_than_turns_are_refused() -> None:
    with pytest.raises(ValueError, match="crops_per_trajectory 3 is over mean_turns 2"):
        rehearsal(crops_per_trajectory=3)


def test_a_pack_holds_whole_groups_with_their_images() -> None:
    step = counted(groups_per_step=8, group_size=4, mean_turns=2)
    group = step.step_tokens_tree / 8
    at_once = count_at_once(rehearsal(pack_tokens=int(2.5 * group)), step)
    assert at_once.tokens == 2 * group
    assert at_once.patches == 4 * 2 * (100 + 4 * 16)
    assert at_once.sampled_tokens == step.step_sampled_tree / 4
    assert count_at_once(rehearsal(pack_tokens=10**6), step).tokens == 8 * group


def test_a_split_group_holds_all_its_images_and_a_trajectory_is_never_cut() -> None:
    step = counted(groups_per_step=8, group_size=4, mean_turns=2)
    assert step.tokens < 800 < step.step_tokens_tree / 8
    split = count_at_once(rehearsal(pack_tokens=800), step)
    assert (split.tokens, split.patches) == (800, 4 * (100 + 4 * 16))
    assert count_at_once(rehearsal(pack_tokens=1), step).tokens == step.tokens


# -- parameters and what is held ------------------------------------------------------------------


def test_qwen_7b_has_eight_point_two_nine_billion_parameters() -> None:
    shape = qwen_7b()
    assert shape.parameters == pytest.approx(8.29e9, rel=0.01)
    assert (shape.text.num_blocks, shape.text.hidden, shape.text.key) == (28, 3584, 512)
    assert shape.head == shape.embedding == 152064 * 3584
    attention = 2 * (3584 + 3584) + 2 * (3584 + 512)
    assert shape.adapted_widths == 28 * (attention + 3 * (3584 + 18944))


def test_the_shape_on_the_meta_device_is_that_of_a_built_model() -> None:
    model = tiny()
    shape = shape_of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.head == 0  # tied: counted once
    assert (shape.patch_values, shape.num_whole_blocks) == (1176, 3)
    parts = shape.text.num_blocks * shape.text.parameters
    parts += shape.vision.num_blocks * shape.vision.parameters
    parts += shape.embedding + shape.merger + shape.patch_embed + shape.text.hidden  # last norm
    assert parts == shape.parameters


def test_weights_gradients_and_moments_are_those_of_a_model_after_a_step() -> None:
    model = tiny(64)
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    estimate = estimate_memory(shape_of(model.config), NOTHING, PLAIN)
    assert estimate.weights == sum(p.nbytes for p in model.parameters())
    assert estimate.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert estimate.moments == sum(moment.nbytes for moment in moments)
    assert estimate.reference == estimate.weights


def test_full_sharding_divides_what_is_held_and_gathers_two_blocks() -> None:
    shape = qwen_7b()
    one = estimate_memory(shape, NOTHING, PLAIN)
    eight = estimate_memory(shape, NOTHING, replace(PLAIN, world_size=8))
    assert eight.held == pytest.approx(one.held / 8)
    root = shape.parameters - 28 * shape.text.parameters - 32 * shape.vision.parameters
    assert eight.copies == 4 * (2 * root + 3 * shape.text.parameters)


def test_lora_trains_its_adapters_only_and_its_base_is_the_reference() -> None:
    shape = qwen_7b()
    how = replace(PLAIN, lora_rank=64, number_bytes=2)
    estimate = estimate_memory(shape, NOTHING, how)
    trained = trained_parameters(shape, replace(PLAIN, lora_rank=64))
    assert trained == 64 * shape.adapted_widths
    assert estimate.gradients + estimate.moments == 12 * trained
    assert estimate.weights == 2 * shape.parameters + 4 * trained
    assert (estimate.reference, estimate.copies) == (0, 0)


def test_without_kl_there_is_no_reference() -> None:
    assert estimate_memory(qwen_7b(), NOTHING, replace(PLAIN, has_reference=False)).reference == 0


# -- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [64, 128])
@pytest.mark.parametrize("number_bytes", [4, 2])
def test_activations_are_what_autograd_keeps(hidden: int, number_bytes: int) -> None:
    model = tiny(hidden)
    shape, how = shape_of(model.config), replace(PLAIN, number_bytes=number_bytes)
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=number_bytes == 2)
    with half:
        text = saved_bytes(model, lambda: hidden_states(model, 250))
        vision = saved_bytes(model, lambda: image_features(model, 2))
    assert text_activation_bytes(shape, how) == pytest.approx(text / 250, rel=0.05)
    pixels = 4 * shape.patch_values if number_bytes == 2 else 0  # there autograd keeps their copy
    kept = vision_activation_bytes(shape, how) - pixels
    assert kept == pytest.approx(vision / 288, rel=0.05)


@pytest.mark.parametrize(
    ("number_bytes", "checkpointing", "freeze_vision"),
    [(4, False, False), (4, True, False), (2, False, False), (2, True, False), (4, False, True)],
)
def test_the_peak_of_a_pack_is_what_the_trainer_holds(
    number_bytes: int,
    checkpointing: bool,
    freeze_vision: bool,
    checkpoint: Path,
    blob_url: str,
    builder: GroupBuilder,
) -> None:
    policy = Policy.load(
        checkpoint,
        CPU,
        torch.bfloat16 if number_bytes == 2 else torch.float32,
        gradient_checkpointing=checkpointing,
    )
    if freeze_vision:
        policy.freeze_vision()
    larger = replace(builder, shown_px=168)
    samples = build_group(larger.group(1), policy.limits, divide=True).samples
    images = ImageSource(BlobStore(blob_url), checkpoint)
    images.hold(span for sample in samples for span in sample.images)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        tree = build_tree(samples, pad := policy.limits.image_token_id)
        shown = collect_images([[tree]], images, CPU)
        pack = collate([tree], shown.rows_by_name, image_token_id=pad, device=CPU)
        policy.trained_logprobs(pack, policy.image_features(shown)).sum().backward()
    at_once = AtOnce(
        tokens=len(pack.input_ids_L),
        patches=len(shown.pixel_values),
        sampled_tokens=len(pack.tokens_U),
    )
    how = replace(
        PLAIN,
        gradient_checkpointing=checkpointing,
        number_bytes=number_bytes,
        freeze_vision=freeze_vision,
    )
    estimate = estimate_memory(read_shape(checkpoint), at_once, how)
    expected = estimate.activations + estimate.copies + estimate.working
    seen = estimate.weights if number_bytes == 4 else 0  # operators return views of them
    assert live.peak - seen == pytest.approx(expected, rel=0.15)


def test_logits_take_sixteen_bytes_each() -> None:
    hidden = torch.zeros(100, 8, requires_grad=True)
    head = torch.nn.Linear(8, 20_000, bias=False)
    forbidden = torch.tensor([1, 2])

    def logprobs(before: torch.Tensor) -> torch.Tensor:
        logits = head(before).index_fill(1, forbidden, float("-inf"))
        return logits[:, 5] - torch.logsumexp(logits, dim=1)

    with LiveBytes() as live:
        pieces = [recomputed(logprobs, piece, use_reentrant=False) for piece in hidden.split(50)]
        torch.cat(pieces).sum().backward()
    assert live.peak == pytest.approx(LOGIT_BYTES * 50 * 20_000, rel=0.15)


# -- FLOPs ----------------------------------------------------------------------------------------


def test_flops_are_those_torch_counts_of_a_trajectory_and_its_image() -> None:
    model = tiny()
    step = counted(groups_per_step=1, group_size=2, view_pixels=36 * 28**2, mean_turns=1)
    num_tokens = int(step.tokens)
    flops = count_flops(shape_of(model.config), step, work_one_by_one(step), ONE_PASS)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden_states(model, num_tokens).sum().backward()
    # torch counts all pairs of a causal sequence
    expected = (flops.text + 2 * flops.text_attention) / 2
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        image_features(model, 1).sum().backward()
    expected = (flops.vision + flops.vision_attention) / 2
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_every_further_forward_pass_is_counted() -> None:
    assert ONE_PASS.flops(backward=4, recomputed=False) == 6
    assert ONE_PASS.flops(backward=4, recomputed=True) == 8
    more = replace(ONE_PASS, updates=2, has_reference=True)
    assert more.flops(backward=4, recomputed=False) == 2 * 8 + 2


# -- the command ----------------------------------------------------------------------------------


def test_every_setting_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVR_TRAINER_LR", "1e-5")
    monkeypatch.setenv("MEDVR_TRAINER_SEED", "3")
    argv = ["--dry-run", "--model", "x", "--run", "r", "--seed", "4"]
    argv += ["--redis-url", "redis://me:secret@host/0"]
    found = {o.name: o for o in origins(DryRunSettings.load(argv), argv)}
    assert found["lr"][1:] == ("1e-05", Origin.ENVIRONMENT)
    assert found["seed"][1:] == ("4", Origin.FLAG)
    assert found["kl_beta"][1:] == ("0.001", Origin.DEFAULT)
    assert found["redis_url"].value == "redis://…@host/0"
    assert list(found) == list(DryRunSettings.model_fields)


def test_a_dry_run_prints_its_tables_and_touches_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "medvr.json"):  # no weights, no tokenizer
        (folder / name).write_bytes((TINY / name).read_bytes())
    command = ["services", "trainer", "--dry-run", "--model", str(folder), "--run", "r"]
    command += ["--redis-url", "redis://127.0.0.1:1/0", "--world-size", "2", "--lora-rank", "4"]
    process = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    titles = [line for line in process.stdout.splitlines() if line[:1].strip()]
    assert [title.split("; at once")[0] for title in titles] == [
        "settings",
        "tokens of a step",
        "model",
        "memory of one process of 2, float32",
        "FLOPs of a step",
        "Nothing was loaded, fetched or written; Redis was not asked.",
    ]
    parameters = read_shape(folder).parameters
    assert f"  parameters      {parameters:,}" in process.stdout
    assert "full, plain  full, checkpointing  LoRA 4, plain *" in process.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_trajectory_longer_than_the_model_takes_is_pointed_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--dry-run", "--model", str(TINY), "--run", "r", "--response-tokens", "2000"])
    assert "TOO LONG: the model takes 2,048" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is no checkpoint: it has no config.json"),
        ("{", "config.json is not usable"),
        ('{"model_type": "llama"}', "the checkpoint is a llama; accepted: qwen2_5_vl"),
        ('{"model_type": "qwen2_5_vl", "vocab_size": "many"}', "error for field 'vocab_size'"),
        ('{"model_type": "qwen2_5_vl", "num_attention_heads": 0}', "config.json is not usable"),
    ],
)
def test_what_is_no_checkpoint_is_named(
    config: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(SystemExit) as end:
        main(["--dry-run", "--model", str(tmp_path), "--run", "r"])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_hub_name_that_is_not_cached_is_not_fetched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--dry-run", "--model", "medvr-tests/not-cached", "--run", "r"])
    assert end.value.code == 2
    assert "nor in the hub's cache, and a dry run downloads nothing" in capsys.readouterr().err


def test_help_lists_the_dry_run_and_the_dry_runs_help_its_assumptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--dry-run" in (plain := capsys.readouterr().out)
    assert "--group-size" not in plain
    with pytest.raises(SystemExit):
        main(["--dry-run", "--help"])
    assert "--lora-rank" in capsys.readouterr().out


def test_an_assumption_without_a_dry_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--model", "x", "--run", "r", "--group-size", "8"])
    assert end.value.code == 2
    assert "group" in capsys.readouterr().err
