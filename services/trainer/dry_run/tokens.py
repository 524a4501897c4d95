"""The tokens of a step, one trajectory at a time and as trees with shared prefixes.

A group has M trajectories, m of them branches. Means, per trajectory: t turns of R sampled tokens,
k crops of I_c image tokens, each in an observation with O tokens of text. The prompt has P tokens
of text and a view of I_v; an image adds its two brackets.

    prompt        p = P + I_v + 2
    completion    c = t·R + k·(I_c + 2 + O)
    one by one    M · (p + c)
    inherited     h = (k − 1)/2 · (R + I_c + 2 + O) + R − 23       (k ≥ 1; no branches if k = 0)
    as a tree     p + M·c − m·h

A branch is cut before the first coordinate of a call (METHOD.md, EVR), 23 tokens before the end of
its turn, at any of the k calls with equal chance; it inherits what lies before and shares the
prompt as everyone does. The ratio one by one / tree bounds what trees can save in the text model,
because what they save are prefixes, whose attention is the cheapest. It grows with M towards
(p + c) / (c − m/M·h), and is below M. Trajectories of mean length stand for all; prefixes that are
computed again because a tree is split over packs are left out.

What is computed at once is a pack of at most `pack_tokens` distinct tokens, and all images of the
groups in it, whose features wait until their last pack is done.
"""

from dataclasses import dataclass

from services.trainer.settings import DryRunSettings
from shared.geometry import PATCH_FACTOR_PX
from shared.weights import PolicyManifest

IMAGE_BRACKETS_TOKENS = 2
"""`<|vision_start|>` and `<|vision_end|>` around an image."""
CUT_TOKENS = 23
"""From the first coordinate to the end of `</tool_call>`: four three-digit numbers, as Qwen's
tokenizer writes them."""
PATCHES_PER_TOKEN = 4
"""Two by two patches become one image token."""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Means of a step. Fields without `group` or `step` in their name are per trajectory."""

    groups_per_step: int
    group_size: int
    """M."""
    branches_per_group: int
    """m."""
    prompt_tokens: int
    """p: text, view and its brackets."""
    view_tokens: int
    """I_v."""
    crop_tokens: int
    """I_c."""
    crops: float
    """k."""
    sampled_tokens: float
    """t·R: what a loss is computed on."""
    completion_tokens: float
    """c."""
    inherited_tokens: float
    """h, of a branch."""
    inherited_sampled_tokens: float
    """Sampled tokens among h."""
    inherited_crops: float
    """Crops among h."""

    @property
    def tokens(self) -> float:
        """p + c."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def step_trajectories(self) -> int:
        """Trajectories of a step."""
        return self.groups_per_step * self.group_size

    @property
    def step_tokens_one_by_one(self) -> float:
        """Tokens of a step if every trajectory is computed whole."""
        return self.step_trajectories * self.tokens

    @property
    def step_tokens_tree(self) -> float:
        """Distinct tokens of a step."""
        group = self.prompt_tokens + self.group_size * self.completion_tokens
        return self.groups_per_step * (group - self.branches_per_group * self.inherited_tokens)

    @property
    def ratio(self) -> float:
        """One by one over tree: the most a tree can save at this group size."""
        return self.step_tokens_one_by_one / self.step_tokens_tree

    @property
    def ratio_limit(self) -> float:
        """The ratio of an endless group."""
        share = self.branches_per_group / self.group_size
        return self.tokens / (self.completion_tokens - share * self.inherited_tokens)

    @property
    def step_images_one_by_one(self) -> float:
        """Images of a step if every trajectory encodes its own."""
        return self.step_trajectories * (1 + self.crops)

    @property
    def step_images_tree(self) -> float:
        """Distinct images of a step."""
        crops = self.group_size * self.crops - self.branches_per_group * self.inherited_crops
        return self.groups_per_step * (1 + crops)

    @property
    def step_sampled_one_by_one(self) -> float:
        """Trained tokens of a step, those that branches inherited counted in each."""
        return self.step_trajectories * self.sampled_tokens

    @property
    def step_sampled_tree(self) -> float:
        """Distinct trained tokens of a step."""
        inherited = self.groups_per_step * self.branches_per_group * self.inherited_sampled_tokens
        return self.step_sampled_one_by_one - inherited


@dataclass(frozen=True, slots=True)
class AtOnce:
    """What one forward and backward pass holds."""

    tokens: float
    """In the text model."""
    patches: float
    """In the vision tower: every distinct image once."""
    sampled_tokens: float
    """Whose logits are needed."""


def count_step(settings: DryRunSettings, manifest: PolicyManifest) -> StepTokens:
    """The token arithmetic of a step; image sizes not given are the largest of the manifest."""
    view = image_tokens(settings.view_pixels or manifest.view.max_pixels)
    crop = image_tokens(settings.crop_pixels or manifest.crop.max_pixels)
    turn = settings.response_tokens
    crops = settings.crops
    shown = crop + IMAGE_BRACKETS_TOKENS + settings.observation_text_tokens
    branches = int(settings.group_size * settings.branch_share) if crops else 0
    rounds_before = max(0.0, (crops - 1) / 2)
    before_cut = max(0.0, turn - CUT_TOKENS)
    return StepTokens(
        groups_per_step=settings.groups_per_step,
        group_size=settings.group_size,
        branches_per_group=branches,
        prompt_tokens=settings.prompt_text_tokens + view + IMAGE_BRACKETS_TOKENS,
        view_tokens=view,
        crop_tokens=crop,
        crops=crops,
        sampled_tokens=settings.mean_turns * turn,
        completion_tokens=settings.mean_turns * turn + crops * shown,
        inherited_tokens=rounds_before * (turn + shown) + before_cut,
        inherited_sampled_tokens=rounds_before * turn + before_cut,
        inherited_crops=rounds_before,
    )


def image_tokens(num_pixels: int) -> int:
    """Tokens of an image of that area, a square of 28 pixels each."""
    return max(1, num_pixels // PATCH_FACTOR_PX**2)


def count_at_once(settings: DryRunSettings, step: StepTokens) -> AtOnce:
    """A pack: as many groups as its budget holds, or a part of one group with all its images."""
    group_tokens = step.step_tokens_tree / step.groups_per_step
    groups = min(step.groups_per_step, max(1, int(settings.pack_tokens // group_tokens)))
    tokens = min(groups * group_tokens, max(settings.pack_tokens, step.tokens))
    crops = step.step_images_tree / step.groups_per_step - 1
    return AtOnce(
        tokens=tokens,
        patches=PATCHES_PER_TOKEN * groups * (step.view_tokens + crops * step.crop_tokens),
        sampled_tokens=step.step_sampled_tree * tokens / step.step_tokens_tree,
    )
