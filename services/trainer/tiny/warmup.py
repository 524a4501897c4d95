"""The first two stages of pre-training: seeing from hints, then placing and reading."""

from collections.abc import Iterable, Sequence
from random import Random

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from services.trainer.tiny.forward import hidden_states, image_features, letter_logits, trained_loss
from services.trainer.tiny.hints import Hints
from services.trainer.tiny.pixels import decode_all, to_patches
from services.trainer.tiny.recipe import PATCH_GRID_HW, PretrainSettings
from services.trainer.tiny.scenes import Scene
from services.trainer.tiny.sequences import Speller
from services.trainer.tiny.wording import ANSWER_THOUGHTS, LOOK_THOUGHTS
from shared.progress import progress


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
    with progress(range(settings.vision_steps), title="vision") as bar:
        for step in bar:
            viewed = random.sample(scenes, settings.scenes_per_step)
            read = random.sample(crops, settings.vision_crops_per_step)
            pngs = [scene.view_png for scene in viewed] + [look.crop_png for _, look in read]
            patches = to_patches(decode_all(pngs))
            features = image_features(visual, patches, PATCH_GRID_HW)
            kinds = torch.tensor([ord(scene.answer) - ord("A") for scene, _ in read])
            views_NTH, crops_NTH = features.split([len(viewed), len(read)])
            logits = hints.kind_logits(crops_NTH, read)
            salience = hints.view_salience_loss(views_NTH, viewed)
            salience = salience + hints.crop_salience_loss(crops_NTH, read)
            stage.update(functional.cross_entropy(logits, kinds) + salience, step)
            accuracy = (logits.argmax(-1) == kinds).float().mean().item()
            bar.set_postfix(kinds=f"{accuracy:.2f}", salience=f"{salience.item():.2f}")


def warm_text_up(
    model: Qwen2_5_VLForConditionalGeneration,
    hints: Hints,
    speller: Speller,
    scenes: Sequence[Scene],
    settings: PretrainSettings,
    random: Random,
) -> None:
    """Teach the text model to place and spell a look, and to read a crop; vision is held still.

    Here every look goes to the target: from looks of which half go anywhere, the way from a known
    place to its digits was not found in 450 steps. The last stage unlearns most of it again. Each
    picture is encoded once, so a step costs a third of a whole one.
    """
    if settings.text_steps == 0:
        return
    views_NTH = _features(model, [scene.view_png for scene in scenes])
    crops_NTH = _features(model, [scene.looks[0].crop_png for scene in scenes])
    modules = [model.model.language_model, hints]
    stage = _Stage(modules, settings.peak_lr, settings.warmup_steps, settings.max_grad_norm)
    with progress(range(settings.text_steps), title="text") as bar:
        for step in bar:
            placed = random.sample(range(len(scenes)), settings.text_looks_per_step)
            shown = [scenes[i] for i in placed]
            boxes = [_box_at(scene, settings, random) for scene in shown]
            thoughts = [random.randrange(len(LOOK_THOUGHTS)) for _ in shown]
            batch = speller.batch(
                [speller.first_turn(box, t) for box, t in zip(boxes, thoughts, strict=True)]
            )
            hidden_BLH = hidden_states(model, batch, speller.image_pad_id, views_NTH[placed])
            before_speaking = hidden_BLH[:, len(speller.prompt_ids) - 1]
            spelling, _, _ = trained_loss(model, hidden_BLH, batch)
            place = hints.place_loss(before_speaking, shown)
            read = random.sample(range(len(scenes)), settings.text_crops_per_step)
            pictures = torch.stack([views_NTH[read], crops_NTH[read]], dim=1)
            reading, right = _read(model, speller, [scenes[i] for i in read], pictures, random)
            stage.update(spelling + place + reading, step)
            bar.set_postfix(
                spelling=f"{spelling.item():.2f}",
                place=f"{hints.place_accuracy(before_speaking, shown):.2f}",
                reading=f"{right:.2f}",
            )


def _read(
    model: Qwen2_5_VLForConditionalGeneration,
    speller: Speller,
    scenes: Sequence[Scene],
    pictures: torch.Tensor,
    random: Random,
) -> tuple[torch.Tensor, float]:
    """Loss of the letter after each scene's first look, and the share of right ones."""
    batch = speller.batch(
        [
            speller.conversation(
                scene.looks[0].bbox_2d,
                scene.answer,
                (random.randrange(len(LOOK_THOUGHTS)), random.randrange(len(ANSWER_THOUGHTS))),
                is_imitated=False,
            )
            for scene in scenes
        ]
    )
    hidden_BLH = hidden_states(model, batch, speller.image_pad_id, pictures)
    logits, answers = letter_logits(model, hidden_BLH, batch, speller.letters)
    right = (logits.argmax(-1) == answers).float().mean().item()
    return functional.cross_entropy(logits, answers), right


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


@torch.no_grad()
def _features(model: Qwen2_5_VLForConditionalGeneration, pngs: Sequence[bytes]) -> torch.Tensor:
    """Image tokens of pictures, [N, T, H], without a gradient."""
    chunks = [pngs[i : i + 64] for i in range(0, len(pngs), 64)]
    return torch.cat(
        [
            image_features(model.model.visual, to_patches(decode_all(chunk)), PATCH_GRID_HW)
            for chunk in chunks
        ]
    )
