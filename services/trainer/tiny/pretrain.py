"""Supervised pre-training of the tiny base policy on generic scenes.

One epoch-shuffled pass after another; a batch is `scenes_per_step` scenes with all their looks, so
the view of a scene is encoded once for all its looks. Deterministic from the seed for a given thread count.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.forward import hidden_states_BLH, image_features_NTH, trained_loss
from services.trainer.tiny.pixels import decode_all, patches_NPD
from services.trainer.tiny.scenes import Scene, SceneFile
from services.trainer.tiny.sequences import Batch, Speller
from services.trainer.tiny.wording import ANSWER_THOUGHTS, LOOK_THOUGHTS

PATCH_GRID_HW = (12, 12)


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how fast."""

    num_steps: int
    scenes_per_step: int = 12
    peak_lr: float = 1.5e-3
    warmup_steps: int = 30
    vision_steps: int = 80
    """Steps before the others in which only the vision tower learns, from the hint."""
    vision_lr: float = 1e-3
    vision_crops_per_step: int = 48
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    hint_weight: float = 0.5
    """Of the vision hint's loss beside the policy's."""
    seed: int = 0


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured, on the batch it trained on."""

    loss_nats: float
    hint_accuracy: float
    """Share of kinds right by the vision hint."""
    reading_accuracy: float
    """Share of letters right (argmax) where the target is in the crop."""


class VisionHint(nn.Module):
    """Names the kind from a crop's image tokens alone; thrown away after pre-training.

    Reading a pattern is a plateau: from the letter's gradient alone the vision tower had not left
    chance after 140 steps, with the hint it reads nine crops of ten after 50.
    """

    def __init__(self, hidden: int, num_kinds: int) -> None:
        super().__init__()
        self.per_token = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU())
        self.kind = nn.Linear(hidden, num_kinds)

    def forward(self, crops_NTH: torch.Tensor) -> torch.Tensor:
        """Logits of the kind, [N, num_kinds]."""
        return self.kind(self.per_token(crops_NTH).mean(dim=1))


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
                imitated=look.imitated,
            )
            for scene in scenes
            for look in scene.looks
        ]
    )


def _features(model: Qwen2_5_VLForConditionalGeneration, scenes: list[Scene]) -> torch.Tensor:
    """Image tokens in the order of the batch: for each look its scene's view, then its crop."""
    num_looks = sum(len(scene.looks) for scene in scenes)
    pngs = [scene.view_png for scene in scenes]
    pngs += [look.crop_png for scene in scenes for look in scene.looks]
    encoded = image_features_NTH(
        model.model.visual, patches_NPD(decode_all(pngs)), PATCH_GRID_HW
    )
    view_of_look = [i for i, scene in enumerate(scenes) for _ in scene.looks]
    views, crops = encoded[view_of_look], encoded[len(scenes) :]
    return torch.stack([views, crops], dim=1).reshape(num_looks, 2, *encoded.shape[1:])


def _optimizer(
    model: nn.Module, hint: nn.Module, settings: PretrainSettings
) -> torch.optim.AdamW:
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
) -> list[StepMetrics]:
    """Train the model in place; the metrics of every step."""
    speller = Speller(tokenizer, scene_file.question, scene_file.options)
    trainer = _Trainer(model, speller, len(scene_file.options), settings)
    trainer.warm_vision_up(scene_file.scenes)
    metrics: list[StepMetrics] = []
    order = _scene_order(len(scene_file.scenes), settings)
    with tqdm(order, total=settings.num_steps, desc="base", unit="step") as progress:
        for step, indices in enumerate(progress):
            scenes = [scene_file.scenes[i] for i in indices]
            metrics.append(trainer.step(scenes, learning_rate(step, settings)))
            recent = metrics[-20:]
            progress.set_postfix(
                loss=f"{sum(m.loss_nats for m in recent) / len(recent):.3f}",
                hint=f"{sum(m.hint_accuracy for m in recent) / len(recent):.3f}",
                reading=f"{sum(m.reading_accuracy for m in recent) / len(recent):.3f}",
            )
    return metrics


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
        self.letters = torch.tensor([speller.token(chr(65 + i)) for i in range(num_kinds)])
        self.hint = VisionHint(model.config.text_config.hidden_size, num_kinds)
        self.optimizer = _optimizer(model, self.hint, settings)
        self.random = Random(settings.seed + 1)

    def warm_vision_up(self, scenes: Sequence[Scene]) -> None:
        """Teach the vision tower the kinds, crop by crop, before any language."""
        settings, visual = self.settings, self.model.model.visual
        crops = [
            (look.crop_png, ord(scene.answer) - 65)
            for scene in scenes
            for look in scene.looks
            if not look.imitated
        ]
        parameters = [*visual.parameters(), *self.hint.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=settings.vision_lr, betas=(0.9, 0.98))
        with tqdm(range(settings.vision_steps), desc="vision", unit="step") as progress:
            for step in progress:
                for group in optimizer.param_groups:
                    group["lr"] = settings.vision_lr * min(1.0, (step + 1) / 15)
                chosen = self.random.sample(crops, settings.vision_crops_per_step)
                patches = patches_NPD(decode_all([png for png, _ in chosen]))
                hinted = self.hint(image_features_NTH(visual, patches, PATCH_GRID_HW))
                kinds = torch.tensor([kind for _, kind in chosen])
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(hinted, kinds).backward()
                nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                accuracy = (hinted.argmax(-1) == kinds).float().mean().item()
                progress.set_postfix(hint=f"{accuracy:.3f}")

    def step(self, scenes: list[Scene], lr: float) -> StepMetrics:
        """Forward, backward, update."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = _spelt(scenes, self.speller, self.random)
        features = _features(self.model, scenes)
        hidden_BLH = hidden_states_BLH(self.model, batch, self.speller.image_pad_id, features)
        loss, _, _ = trained_loss(self.model, hidden_BLH, batch)
        looks = [(scene, look) for scene in scenes for look in scene.looks]
        sure = torch.tensor([not look.imitated for _, look in looks])
        kinds = torch.tensor([ord(scene.answer) - 65 for scene, _ in looks])
        hinted = self.hint(features[sure, 1])
        hint_loss = functional.cross_entropy(hinted, kinds[sure])
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.settings.hint_weight * hint_loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        return StepMetrics(
            loss_nats=loss.item(),
            hint_accuracy=(hinted.argmax(-1) == kinds[sure]).float().mean().item(),
            reading_accuracy=self._reading_accuracy(hidden_BLH, batch, sure),
        )

    @torch.no_grad()
    def _reading_accuracy(
        self, hidden_BLH: torch.Tensor, batch: Batch, sure: torch.Tensor
    ) -> float:
        """Share of letters right among the looks that surely contain the target."""
        targets = batch.labels_BL[:, 1:]
        is_letter = torch.isin(targets, self.letters)
        chosen = self.model.lm_head(hidden_BLH[:, :-1][is_letter]).argmax(-1)
        return (chosen == targets[is_letter])[sure].float().mean().item()
