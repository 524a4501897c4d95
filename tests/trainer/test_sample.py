"""Samples of a hand-made group: which tokens, which of them trained, what is refused."""

import math

import msgspec
import pytest

from services.trainer.sample import ModelLimits, build_group
from shared.errors import PayloadError
from shared.geometry import Box, ImageSize
from shared.problem import AnswerKind
from shared.trajectory import (
    SCHEMA_VERSION,
    ForkOrigin,
    FormatFacts,
    Generation,
    ImageSpan,
    StopReason,
    TextSpan,
    Trajectory,
    TrajectoryGroup,
    Turn,
    VersionSpan,
)
from tests.trainer.groups import rewarded

START, PAD, END, VIDEO = 90, 91, 92, 93
LIMITS = ModelLimits(
    vocabulary_size=100,
    max_tokens=40,
    image_token_id=PAD,
    forbidden_token_ids=frozenset({START, PAD, END, VIDEO}),
)
VIEW = ImageSpan(token_ids=[START, PAD, PAD, END], image="a" * 64, size=ImageSize(56, 28))
CROP = ImageSpan(token_ids=[START, PAD, END], image="b" * 64, size=ImageSize(28, 28))


def sampled(*token_ids: int, logprob: float = -0.5) -> Generation:
    return Generation(
        token_ids=list(token_ids),
        token_texts=["x"] * len(token_ids),
        sampled_logprobs=[logprob - 0.01 * i for i in range(len(token_ids))],
        entropies_nats=[0.1] * len(token_ids),
        version_spans=[VersionSpan(3, len(token_ids))],
        stop=None,
    )


def attempt(name: str, total: float, turns: list[Turn]) -> Trajectory:
    return Trajectory(
        trajectory_id=name,
        origin=ForkOrigin.BASE,
        seed=0,
        turns=turns,
        stop_reason=StopReason.ANSWERED,
        answer="A",
        format_facts=FormatFacts(True, True, True),
        baseline_entropy_nats=0.0,
        reward=rewarded(total),
    )


LOOKED = attempt(
    "looked",
    1.0,
    [
        Turn(generation=sampled(5, 6), observation=[TextSpan([7]), CROP, TextSpan([8])]),
        Turn(generation=sampled(9, 10, 11)),
    ],
)
ANSWERED = attempt("answered", 0.0, [Turn(generation=sampled(5, 12))])


def group(*trajectories: Trajectory, view: ImageSpan = VIEW) -> TrajectoryGroup:
    return TrajectoryGroup(
        schema_version=SCHEMA_VERSION,
        group_id="r:0:p",
        run="r",
        problem_id="p",
        round=0,
        image="c" * 64,
        image_size=ImageSize(112, 56),
        view_size=view.size,
        answer_kind=AnswerKind.CHOICE,
        prompt=[TextSpan([1, 2]), view, TextSpan([3])],
        trajectories=list(trajectories),
        consensus=[Box(0, 0, 10, 10)],
        arm="cca",
        rollout_seconds=1.0,
    )


def test_tokens_are_prompt_then_turns_with_their_observations() -> None:
    (looked, answered) = build_group(group(LOOKED, ANSWERED), LIMITS, divide=True).samples
    prompt = [1, 2, START, PAD, PAD, END, 3]
    assert looked.input_ids == [*prompt, 5, 6, 7, START, PAD, END, 8, 9, 10, 11]
    assert answered.input_ids == [*prompt, 5, 12]


def test_only_what_the_policy_wrote_is_trained() -> None:
    (looked, _) = build_group(group(LOOKED, ANSWERED), LIMITS, divide=True).samples
    trained = [t for t, m in zip(looked.input_ids, looked.loss_mask, strict=True) if m]
    assert trained == [5, 6, 9, 10, 11]
    assert looked.sampled_logprobs == pytest.approx([-0.5, -0.51, -0.5, -0.51, -0.52])
    assert looked.num_trained_tokens == 5


def test_images_come_in_the_order_of_their_placeholders() -> None:
    (looked, answered) = build_group(group(LOOKED, ANSWERED), LIMITS, divide=True).samples
    assert looked.images == (VIEW, CROP)
    assert answered.images == (VIEW,)


def test_advantages_are_those_of_the_group() -> None:
    built = build_group(group(LOOKED, ANSWERED), LIMITS, divide=False)
    assert [s.advantage for s in built.samples] == [0.5, -0.5]
    assert built.has_signal
    twin = msgspec.structs.replace(LOOKED, trajectory_id="twin")
    same = build_group(group(LOOKED, twin), LIMITS, divide=True)
    assert not same.has_signal


def with_turn(generation: Generation) -> Trajectory:
    return msgspec.structs.replace(ANSWERED, turns=[Turn(generation=generation)])


def test_a_sampled_vision_token_is_refused_by_name() -> None:
    with pytest.raises(PayloadError, match=r"answered: sampled forbidden vision tokens \[93\]"):
        build_group(group(LOOKED, with_turn(sampled(5, VIDEO))), LIMITS, divide=True)


def test_a_logprob_that_is_not_finite_is_refused() -> None:
    with pytest.raises(PayloadError, match="a sampled logprob is not finite"):
        build_group(group(with_turn(sampled(5, logprob=-math.inf))), LIMITS, divide=True)


def test_a_trajectory_without_a_sampled_token_is_refused() -> None:
    with pytest.raises(PayloadError, match="the policy sampled nothing"):
        build_group(group(with_turn(sampled())), LIMITS, divide=True)


def test_a_sequence_the_model_has_no_positions_for_is_refused() -> None:
    with pytest.raises(PayloadError, match="48 tokens, the model takes 40"):
        build_group(group(with_turn(sampled(*[5] * 41))), LIMITS, divide=True)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(PayloadError, match="outside the vocabulary"):
        build_group(group(with_turn(sampled(5, 100))), LIMITS, divide=True)


def test_placeholders_must_fit_the_size_of_the_image() -> None:
    wrong = ImageSpan(token_ids=[START, PAD, END], image="a" * 64, size=ImageSize(56, 28))
    with pytest.raises(PayloadError, match="1 placeholders for an image of 2 tokens"):
        build_group(group(ANSWERED, view=wrong), LIMITS, divide=True)


def test_an_image_that_would_have_to_be_resized_is_refused() -> None:
    odd = ImageSpan(token_ids=[START, PAD, END], image="a" * 64, size=ImageSize(30, 28))
    with pytest.raises(PayloadError, match="shown at 30x28 px, sides must be multiples of 28"):
        build_group(group(ANSWERED, view=odd), LIMITS, divide=True)
