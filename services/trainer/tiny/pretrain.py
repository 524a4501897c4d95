# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Supervised pre-training of the tiny base policy on generic scenes.

Three stages: the vision tower learns from hints (kinds, salience); then the text model learns to
place and spell looks and to read crops, the vision tower held still; then the whole imitates the
scenes' looks and answers. In the last, one shuffled pass follows another; a batch is
`scenes_per_step` scenes with all their looks, so a view is encoded once for all its looks.
Deterministic from the seed for a given thread count.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.forward import hidden_states, image_features, letter_logits, trained_loss
from services.trainer.tiny.hints import Hints
from services.trainer.tiny.pixels import decode_all, to_patches
from services.trainer.tiny.recipe import PATCH_GRID_HW, PretrainSettings
from services.trainer.tiny.scenes import Scene, SceneFile
from services.trainer.tiny.sequences import Batch, Speller
from services.trainer.tiny.warmup import warm_text_up, warm_vision_up
from services.trainer.tiny.wording import ANSWER_THOUGHTS, LOOK_THOUGHTS
from shared.agent.tools import ZOOM_IN, Tool
from shared.progress import progress


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured, on the batch it trained on."""

    loss_nats: float
    place_accuracy: float
    """Share of targets placed within a cell of 14 px by the hint."""
    reading_accuracy: float
    """Share of letters right (argmax) where the crop shows the target."""


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < settings.warmup_steps:
        return settings.peak_lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps)
    return settings.peak_lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _scene_order(num_scenes: int, settings: PretrainSettings) -> Iterator[list[int]]:
    """Indices of the scenes of each step, reshuffled at each pass."""
    random = Random(settings.seed)
    queue: list[int] = []
    for _ in range(settings.num_steps):
        while len(queue) < settings.scenes_per_step:
            indices = list(range(num_scenes))
            random.shuffle(indices)
            queue.extend(indices)
        yield queue[: settings.scenes_per_step]
        del queue[: settings.scenes_per_step]


def _spelt(scenes: list[Scene], speller: Speller, random: Random) -> Batch:
    """All looks of the scenes, scene by scene, each with its own thoughts."""
    return speller.batch(
        [
            speller.conversation(
                look.bbox_2d,
                scene.answer,
                (random.randrange(len(LOOK_THOUGHTS)), random.randrange(len(ANSWER_THOUGHTS))),
                is_imitated=look.is_imitated,
                window=scene.window,
            )
            for scene in scenes
            for look in scene.looks
        ]
    )


@dataclass(frozen=True)
class _Seen:
    """Image tokens of the scenes of a step; L looks in all, scene by scene."""

    views_NTH: torch.Tensor
    """One view a scene: where the target shows."""
    crops_LTH: torch.Tensor
    in_order_TH: torch.Tensor
    """Of all conversations one after the other: what is shown first, the view, the crop."""


def _seen(model: Qwen2_5_VLForConditionalGeneration, scenes: list[Scene]) -> _Seen:
    """Every picture is encoded once, however many looks there are into it."""
    pngs = [scene.view_png for scene in scenes]
    pngs += [look.crop_png for scene in scenes for look in scene.looks]
    hidden = [scene for scene in scenes if scene.first_png is not None]
    pngs += [scene.first_png for scene in hidden if scene.first_png is not None]
    encoded = image_features(model.model.visual, to_patches(decode_all(pngs)), PATCH_GRID_HW)
    order: list[int] = []
    crop, first = len(scenes), len(pngs) - len(hidden)
    for view, scene in enumerate(scenes):
        before = [view] if scene.first_png is None else [first, view]
        first += len(before) - 1
        for _ in scene.looks:
            order += [*before, crop]
            crop += 1
    return _Seen(
        views_NTH=encoded[: len(scenes)],
        crops_LTH=encoded[len(scenes) : len(pngs) - len(hidden)],
        in_order_TH=encoded[order].flatten(0, 1),
    )


def _optimizer(model: nn.Module, hint: nn.Module, settings: PretrainSettings) -> torch.optim.AdamW:
    parameters = [*model.parameters(), *hint.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    kept = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=(0.9, 0.98))


def pretrain(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    scene_file: SceneFile,
    settings: PretrainSettings,
    tools: Sequence[Tool] = (ZOOM_IN,),
) -> list[StepMetrics]:
    """Train the model in place for a policy of these tools; the metrics of every step."""
    speller = Speller(tokenizer, scene_file.question, scene_file.options, tools=tools)
    trainer = _Trainer(model, speller, len(scene_file.options), settings)
    warm_vision_up(model, trainer.hints, scene_file.scenes, settings, trainer.random)
    views = scene_file.scenes[: settings.num_text_scenes]
    warm_text_up(model, trainer.hints, speller, views, settings, trainer.random)
    metrics: list[StepMetrics] = []
    order = _scene_order(len(scene_file.scenes), settings)
    with progress(order, title="base", total=settings.num_steps) as bar:
        for step, indices in enumerate(bar):
            scenes = [_trimmed(scene_file.scenes[i], settings) for i in indices]
            metrics.append(trainer.step(scenes, learning_rate(step, settings)))
            recent = metrics[-20:]
            bar.set_postfix(
                loss=f"{sum(m.loss_nats for m in recent) / len(recent):.3f}",
                place=f"{sum(m.place_accuracy for m in recent) / len(recent):.3f}",
                reading=f"{sum(m.reading_accuracy for m in recent) / len(recent):.3f}",
            )
    return metrics


def _trimmed(scene: Scene, settings: PretrainSettings) -> Scene:
    """With as many looks as a step takes; a scene's first look is the one to be read."""
    number = settings.looks_per_scene
    return scene if number is None else replace(scene, looks=scene.looks[-number:])


class _Trainer:
    """One optimizer step at a time."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        speller: Speller,
        num_kinds: int,
        settings: PretrainSettings,
    ) -> None:
        self.model, self.speller, self.settings = model, speller, settings
        self.letters = speller.letters
        self.hints = Hints(model.config.text_config.hidden_size, num_kinds)
        self.optimizer = _optimizer(model, self.hints, settings)
        self.random = Random(settings.seed + 1)

    def step(self, scenes: list[Scene], lr: float) -> StepMetrics:
        """Forward, backward, update."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = _spelt(scenes, self.speller, self.random)
        with torch.set_grad_enabled(not self.settings.is_vision_held):
            seen = _seen(self.model, scenes)
        hidden_BLH = hidden_states(self.model, batch, self.speller.image_pad_id, seen.in_order_TH)
        loss, _, _ = trained_loss(self.model, hidden_BLH, batch)
        scene_of_look = [scene for scene in scenes for _ in scene.looks]
        before_look = [len(self.speller.before_look(scene.window)[0]) for scene in scene_of_look]
        before_speaking = hidden_BLH[torch.arange(len(before_look)), torch.tensor(before_look) - 1]
        sure, kinds = _sure_and_kinds(scenes)
        sure_looks = [
            (scene, look) for scene in scenes for look in scene.looks if look.shows(scene.target)
        ]
        logits, answers = letter_logits(self.model, hidden_BLH, batch, self.letters)
        hint_loss = (
            functional.cross_entropy(
                self.hints.kind_logits(seen.crops_LTH[sure], sure_looks), kinds[sure]
            )
            + self.hints.crop_salience_loss(seen.crops_LTH[sure], sure_looks)
            + self.hints.view_salience_loss(seen.views_NTH, scenes)
            + self.hints.place_loss(before_speaking, scene_of_look)
            + functional.cross_entropy(logits[sure], answers[sure])
        )
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.settings.hint_weight * hint_loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        return StepMetrics(
            loss_nats=loss.item(),
            place_accuracy=self.hints.place_accuracy(before_speaking, scene_of_look),
            reading_accuracy=(logits.argmax(-1) == answers)[sure].float().mean().item(),
        )


def _sure_and_kinds(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """For every look: whether it surely shows the target, and the target's kind."""
    looks = [(scene, look) for scene in scenes for look in scene.looks]
    sure = torch.tensor([look.shows(scene.target) for scene, look in looks])
    kinds = torch.tensor([ord(scene.answer) - 65 for scene, _ in looks])
    return sure, kinds
