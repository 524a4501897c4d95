"""Builders: a tiny checkpoint with random weights, and groups as the rollout workers make them."""

import io
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from services.trainer.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers import PreTrainedTokenizerFast  # noqa: E402

from services.trainer.tiny.architecture import build_config, build_model, save_processor  # noqa: E402
from services.trainer.tiny.tokenizer import build_tokenizer  # noqa: E402
from services.trainer.tiny.wording import answer_turn, corpus, look_turn  # noqa: E402
from shared.agent.prompt import (  # noqa: E402
    observation_after_image,
    observation_before_image,
    prompt_after_image,
    prompt_before_image,
)
from shared.agent.tools import ZOOM_IN, zoom_caption  # noqa: E402
from shared.blobs import BlobStore  # noqa: E402
from shared.geometry import Box, ImageSize  # noqa: E402
from shared.problem import AnswerKind  # noqa: E402
from shared.trajectory import (  # noqa: E402
    SCHEMA_VERSION,
    ForkDecision,
    ForkOrigin,
    FormatFacts,
    Generation,
    ImageSpan,
    RewardBreakdown,
    StopReason,
    TextSpan,
    ToolCall,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VersionSpan,
    make_group_id,
)

QUESTION = "What kind of mark is it?"
OPTIONS = ("ring", "cross", "disc")
ORIGINAL = ImageSize(336, 336)
BBOX_2D = (14.0, 35.0, 56.0, 77.0)


def make_checkpoint(folder: Path, *, hidden: int = 64, seed: int = 0) -> PreTrainedTokenizerFast:
    """An ordinary HF checkpoint of the tiny architecture with random weights."""
    tokenizer = build_tokenizer(corpus(QUESTION, OPTIONS))
    model = build_model(build_config(tokenizer, hidden=hidden), seed)
    model.save_pretrained(folder)
    save_processor(tokenizer, folder)
    return tokenizer


def rewarded(total: float) -> RewardBreakdown:
    """A breakdown that adds up to `total`."""
    accuracy = 1.0 if total >= 1.0 else 0.0
    tool = max(0.0, total - accuracy)
    return RewardBreakdown(
        accuracy=accuracy,
        format=total - accuracy - tool,
        tool=tool,
        total=total,
        consensus_iou=0.5 if accuracy else 0.0,
    )


@dataclass
class GroupBuilder:
    """Makes groups whose images lie in `blobs`; the same arguments make the same group."""

    tokenizer: PreTrainedTokenizerFast
    blobs: BlobStore
    run: str = "run"
    shown_px: int = 56

    def text(self, text: str) -> TextSpan:
        """Text as the policy server tokenised it."""
        return TextSpan(token_ids=self.tokenizer.encode(text))

    def picture(self, seed: int, size: ImageSize | None = None) -> ImageSpan:
        """A random picture, stored, as a span."""
        size = size or ImageSize(self.shown_px, self.shown_px)
        pixels = np.random.default_rng(seed).integers(
            0, 256, (size.height_px, size.width_px, 3), dtype=np.uint8
        )
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        start, pad, end = (
            self.tokenizer.convert_tokens_to_ids(t)
            for t in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
        )
        return ImageSpan(
            token_ids=[start, *[pad] * size.num_image_tokens, end],
            image=self.blobs.put(buffer.getvalue()),
            size=size,
        )

    def generation(self, text: str, version: int, rng: np.random.Generator) -> Generation:
        """`text` as if it had been sampled, with made-up logprobs and entropies."""
        token_ids = self.tokenizer.encode(text)
        num_tokens = len(token_ids)
        return Generation(
            token_ids=token_ids,
            token_texts=[self.tokenizer.decode([i]) for i in token_ids],
            sampled_logprobs=[float(x) for x in -rng.exponential(4.0, num_tokens)],
            entropies_nats=[float(x) for x in rng.uniform(0.0, 3.0, num_tokens)],
            version_spans=[VersionSpan(version, num_tokens)],
            stop="</answer>" if text.endswith("</answer>") else "</tool_call>",
        )

    def zoom_turn(self, crop_seed: int, version: int, rng: np.random.Generator) -> Turn:
        """A call and the crop it was answered with."""
        x1 = int(rng.integers(0, 50))
        bbox = (x1, 35, x1 + 42, 77)
        crop = self.picture(crop_seed)
        return Turn(
            generation=self.generation(look_turn("I look closer there.", bbox), version, rng),
            call=ToolCall(
                index=0,
                first_coordinate_token=4,
                end_token=10,
                bbox_2d=tuple(float(c) for c in bbox),
                box=Box(2 * x1, 70, 2 * x1 + 84, 154),
                crop=crop,
                error=None,
                fork=ForkDecision(
                    tool_entropy_nats=1.5,
                    entropy_increase_nats=0.5,
                    is_candidate=True,
                    probability=0.75,
                    draw=0.9,
                    branched=False,
                ),
            ),
            observation=[
                self.text(observation_before_image()),
                crop,
                self.text(observation_after_image(zoom_caption(bbox))),
            ],
        )

    def trajectory(
        self, group_seed: int, index: int, *, total: float, zooms: int, version: int
    ) -> Trajectory:
        """One attempt with `zooms` zooms and then an answer."""
        rng = np.random.default_rng([group_seed, index])
        turns = [
            self.zoom_turn(1000 * group_seed + 10 * index + zoom, version, rng)
            for zoom in range(zooms)
        ]
        answer = answer_turn("Now I can see it.", "ABC"[index % 3])
        turns.append(Turn(generation=self.generation(answer, version, rng)))
        return Trajectory(
            trajectory_id=f"{group_seed}-{index}",
            origin=ForkOrigin.BASE,
            seed=index,
            turns=turns,
            stop_reason=StopReason.ANSWERED,
            answer="ABC"[index % 3],
            format_facts=FormatFacts(True, True, True),
            baseline_entropy_nats=1.0,
            reward=rewarded(total),
        )

    def branch(
        self,
        parent: Trajectory,
        trajectory_id: str,
        *,
        turn: int,
        token: int,
        total: float,
        zooms: int,
    ) -> Trajectory:
        """A trajectory cut from its parent within a turn, which then goes on by itself."""
        seed = sum(trajectory_id.encode())
        own = self.trajectory(seed, token, total=total, zooms=zooms, version=0)
        kept, cut = parent.turns[turn].generation, own.turns[0].generation
        lists = ("token_ids", "token_texts", "sampled_logprobs", "entropies_nats")
        joined = {name: getattr(kept, name)[:token] + getattr(cut, name) for name in lists}
        generation = msgspec.structs.replace(
            cut, **joined, version_spans=[VersionSpan(0, len(joined["token_ids"]))]
        )
        first = msgspec.structs.replace(own.turns[0], generation=generation)
        return msgspec.structs.replace(
            own,
            trajectory_id=trajectory_id,
            origin=ForkOrigin.DRAWN,
            parent_id=parent.trajectory_id,
            forked_at_turn=turn,
            forked_at_token=token,
            turns=[*parent.turns[:turn], first, *own.turns[1:]],
        )

    def group(
        self,
        seed: int,
        *,
        totals: tuple[float, ...] = (1.5, 0.0, 1.0, -0.2),
        zooms: tuple[int, ...] = (1, 0, 2, 1),
        version: int = 0,
        round_index: int = 0,
    ) -> TrajectoryGroup:
        """A scored group with one trajectory per entry of `totals`."""
        view = self.picture(seed)
        return TrajectoryGroup(
            schema_version=SCHEMA_VERSION,
            group_id=make_group_id(self.run, round_index, f"p{seed}"),
            run=self.run,
            problem_id=f"p{seed}",
            round=round_index,
            image="0" * 64,
            image_size=ORIGINAL,
            view_size=view.size,
            answer_kind=AnswerKind.CHOICE,
            prompt=[
                self.text(prompt_before_image((ZOOM_IN,))),
                view,
                self.text(prompt_after_image(QUESTION, OPTIONS)),
            ],
            trajectories=[
                self.trajectory(seed, i, total=total, zooms=zooms[i % len(zooms)], version=version)
                for i, total in enumerate(totals)
            ],
            consensus=[Box(10, 70, 94, 154)],
            arm="cca",
            rollout_seconds=1.0,
        )
