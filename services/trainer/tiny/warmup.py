"""The first two stages of pre-training: seeing, then placing, each from hints alone."""

from collections.abc import Iterable, Sequence
from random import Random

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.forward import hidden_states, image_features, trained_loss
from services.trainer.tiny.hints import Hints
from services.trainer.tiny.pixels import decode_all, to_patches
from services.trainer.tiny.recipe import PATCH_GRID_HW, PretrainSettings
from services.trainer.tiny.scenes import Scene
from services.trainer.tiny.sequences import Speller
from services.trainer.tiny.wording import LOOK_THOUGHTS


def warm_vision_up(
    model: Qwen2_5_VLForConditionalGeneration,
    hints: Hints,
    scenes: Sequence[Scene],
    settings: PretrainSettings,
    random: Random,
) -> None:
    """Teach the vision tower kinds and places from the hints, before any language."""
    visual = model.model.visual
    crops = [(scene, look) for scene in scenes for look in scene.looks if look.shows(scene.target)]
    stage = _Stage([visual, hints], settings.vision_lr, 15, settings.max_grad_norm)
    with tqdm(range(settings.vision_steps), desc="vision", unit="step") as progress:
        for step in progress:
            viewed = random.sample(scenes, settings.scenes_per_step)
            read = random.sample(crops, settings.vision_crops_per_step)
            pngs = [scene.view_png for scene in viewed] + [look.crop_png for _, look in read]
            patches = to_patches(decode_all(pngs))
            features = image_features(visual, patches, PATCH_GRID_HW)
            kinds = torch.tensor([ord(scene.answer) - ord("A") for scene, _ in read])
            logits = hints.kind_logits(features[len(viewed) :], read)
            salience = hints.salience_loss(features[: len(viewed)], viewed)
            stage.update(functional.cross_entropy(logits, kinds) + salience, step)
            accuracy = (logits.argmax(-1) == kinds).float().mean().item()
            progress.set_postfix(kinds=f"{accuracy:.2f}", salience=f"{salience.item():.2f}")


def warm_looks_up(
    model: Qwen2_5_VLForConditionalGeneration,
    hints: Hints,
    speller: Speller,
    scenes: Sequence[Scene],
    settings: PretrainSettings,
    random: Random,
) -> None:
    """Teach the text model to place and to spell a look, the vision tower held still.

    Here every look goes to the target: from looks of which half go anywhere, the way from a known
    place to its digits was not found in 450 steps. The last stage unlearns most of it again. Only
    views are needed and they are encoded once, so a step costs a fourth of a whole one.
    """
    if settings.look_steps == 0:
        return
    with torch.no_grad():
        chunks = [scenes[i : i + 64] for i in range(0, len(scenes), 64)]
        views_NTH = torch.cat([_view_features(model, chunk) for chunk in chunks])
    modules = [model.model.language_model, hints]
    stage = _Stage(modules, settings.peak_lr, settings.warmup_steps, settings.max_grad_norm)
    with tqdm(range(settings.look_steps), desc="looks", unit="step") as progress:
        for step in progress:
            chosen = random.sample(range(len(scenes)), settings.look_views_per_step)
            shown = [scenes[i] for i in chosen]
            batch = speller.batch(
                [
                    speller.first_turn(
                        _box_at(scene, settings, random), random.randrange(len(LOOK_THOUGHTS))
                    )
                    for scene in shown
                ]
            )
            hidden_BLH = hidden_states(model, batch, speller.image_pad_id, views_NTH[chosen])
            before_speaking = hidden_BLH[:, len(speller.prompt_ids) - 1]
            spelling, _, _ = trained_loss(model, hidden_BLH, batch)
            stage.update(spelling + hints.place_loss(before_speaking, shown), step)
            accuracy = hints.place_accuracy(before_speaking, shown)
            progress.set_postfix(loss=f"{spelling.item():.2f}", place=f"{accuracy:.2f}")


def _box_at(scene: Scene, settings: PretrainSettings, random: Random) -> tuple[int, int, int, int]:
    """A box of the taught size around the target, up to a grid step beside it."""
    side, grid = settings.box_px, settings.grid_px
    left, top = (
        min(
            max(0, (round((c - side / 2) / grid) + random.randint(-1, 1)) * grid),
            settings.view_px - side,
        )
        for c in scene.target
    )
    return (left, top, left + side, top + side)


class _Stage:
    """An optimizer over some modules, with a linear warm-up."""

    def __init__(
        self, modules: Iterable[nn.Module], lr: float, warmup_steps: int, max_grad_norm: float
    ) -> None:
        self.parameters = [p for module in modules for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.98))
        self.lr, self.warmup_steps, self.max_grad_norm = lr, warmup_steps, max_grad_norm

    def update(self, loss: torch.Tensor, step: int) -> None:
        """Backward and one step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (step + 1) / self.warmup_steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()


def _view_features(
    model: Qwen2_5_VLForConditionalGeneration, scenes: Sequence[Scene]
) -> torch.Tensor:
    """Image tokens of the scenes' views."""
    patches = to_patches(decode_all([scene.view_png for scene in scenes]))
    return image_features(model.model.visual, patches, PATCH_GRID_HW)
