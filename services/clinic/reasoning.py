"""From trajectories to what a reader is shown: turns, evidence, attempts. Pure functions.

Evidence is a zoom whose crop was shown. Its entropies are those recorded while the policy wrote
the call (METHOD.md, EVR), so nothing is asked again and nothing can differ from what happened.
"""

import math
import re
import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from shared.agent.entropy import tool_entropy_nats
from shared.agent.parser import parse_turn
from shared.api.case_course import CaseAttempt, CaseConsensus, CaseEvidence, CaseToolCall, CaseTurn
from shared.api.cca import AttemptConsensus, ConsensusRegion, Heatmap
from shared.api.clinic import CaseImage
from shared.api.zoom import MAX_WINDOW, WireBox, WireWindow
from shared.geometry import Box, ImageSize
from shared.trajectory import Generation, StopReason, Trajectory, Turn, WindowArguments

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|<tool_call>|<answer>|$)", re.DOTALL)

_OPEN_CALL, _CLOSE_CALL = "<tool_call>", "</tool_call>"
_OPEN_ANSWER, _CLOSE_ANSWER = "<answer>", "</answer>"

_NOT_SHOWN = {
    StopReason.MAX_TURNS: "not carried out: this was the last turn allowed",
    StopReason.CONTEXT_FULL: "not shown: the picture did not fit into the policy's context",
}
"""Why a sound call brought no crop; only the last call of a trajectory can end so."""


def wire_box(box: Box) -> WireBox:
    """A box as it travels."""
    return WireBox(x1=box.x1, y1=box.y1, x2=box.x2, y2=box.y2)


def normalised(box: Box, size: ImageSize) -> list[float]:
    """[x1, y1, x2, y2] as fractions of width and height."""
    return [
        box.x1 / size.width_px,
        box.y1 / size.height_px,
        box.x2 / size.width_px,
        box.y2 / size.height_px,
    ]


def wire_window(window: WindowArguments | None) -> WireWindow | None:
    """A window as the API shows it; null if it is none that could be set."""
    if window is None or not 0 < window.width <= MAX_WINDOW or abs(window.center) > MAX_WINDOW:
        return None
    return WireWindow(center=window.center, width=window.width)


def crop_url(case_id: str, crop: str) -> str:
    """Where a crop of a case is served."""
    return f"/v1/cases/{case_id}/crops/{crop}"


def thought_of(text: str) -> str:
    """The first thought of a turn, also of one that was cut short; empty if there is none."""
    found = _THOUGHT.search(text)
    return "" if found is None else found.group(1).strip()


def text_before_call(text: str) -> str:
    """What a turn says before its call, unedited; all of it if there is none."""
    end = text.find(_CLOSE_CALL)
    opened = text.rfind(_OPEN_CALL, 0, end) if end >= 0 else -1
    return text if opened < 0 else text[:opened]


def answer_tokens(token_texts: Sequence[str]) -> range:
    """The tokens of a turn's answer: from its first through its last character, tags left out.

    A token that also holds a part of a tag counts, if it holds a character of the answer. Empty
    for a turn without an answer.
    """
    answer = parse_turn(token_texts).answer
    if answer is None:
        return range(0)
    text = "".join(token_texts)
    opened = text.rfind(_OPEN_ANSWER, 0, text.index(_CLOSE_ANSWER)) + len(_OPEN_ANSWER)
    first = text.index(answer, opened)
    last = first + len(answer) - 1
    ends = list(accumulate(len(token) for token in token_texts))
    return range(bisect_right(ends, first), bisect_right(ends, last) + 1)


def answer_token_probability(trajectory: Trajectory) -> float | None:
    """exp of the mean log-probability of the tokens of its answer; None if it gave none.

    Of the raw distribution: that at temperature 1, from which several trajectories are drawn, and
    which is reported of a greedy one too.
    """
    if trajectory.answer is None:
        return None
    generation = trajectory.turns[-1].generation
    logprobs = [generation.sampled_logprobs[i] for i in answer_tokens(generation.token_texts)]
    return min(1.0, math.exp(math.fsum(logprobs) / len(logprobs)))


def option_probabilities(
    choices: Sequence[str], normalised_answers: Sequence[str | None]
) -> dict[str, float]:
    """Share of the K trajectories that picked each choice, by letter; empty without choices."""
    counts = Counter(normalised_answers)
    letters = string.ascii_uppercase[: len(choices)]
    return {letter: counts[letter] / len(normalised_answers) for letter in letters}


def mean_entropy_nats(generation: Generation) -> float:
    """Mean H_t over the tokens of a turn; 0 for an empty one."""
    entropies = generation.entropies_nats
    return sum(entropies) / len(entropies) if entropies else 0.0


def size_of(image: CaseImage) -> ImageSize:
    """Of the original."""
    return ImageSize(image.width_px, image.height_px)


def evidence_of(case_id: str, trajectory: Trajectory, image: CaseImage) -> list[CaseEvidence]:
    """The pictures a trajectory asked for and was shown, in order, with H_base, H_tool and ΔH."""
    evidence: list[CaseEvidence] = []
    rendering, size = image.rendering, size_of(image)
    for turn_index, turn in enumerate(trajectory.turns):
        call = turn.call
        if call is None or call.tool is None or call.crop is None:
            continue
        box = call.box or Box.whole(size)
        entropies = turn.generation.entropies_nats
        written = entropies[call.first_coordinate_token : call.end_token]
        tool_nats = tool_entropy_nats(written)
        evidence.append(
            CaseEvidence(
                index=len(evidence),
                turn=turn_index,
                text_before=text_before_call(turn.generation.text),
                tool=call.tool,
                window=wire_window(call.window),
                frame=None if rendering is None else rendering.frame,
                windows=[] if rendering is None or call.window else rendering.windows,
                box=wire_box(box),
                box_normalised=normalised(box, size),
                crop=call.crop.image,
                crop_url=crop_url(case_id, call.crop.image),
                crop_width_px=call.crop.size.width_px,
                crop_height_px=call.crop.size.height_px,
                baseline_entropy_nats=trajectory.baseline_entropy_nats,
                tool_entropy_nats=tool_nats,
                entropy_increase_nats=tool_nats - trajectory.baseline_entropy_nats,
            )
        )
    return evidence


def _tool_call(
    turn: Turn, evidence_index: int | None, stop_reason: StopReason
) -> CaseToolCall | None:
    call = turn.call
    if call is None:
        return None
    error = call.error
    if evidence_index is None and error is None:
        error = _NOT_SHOWN.get(stop_reason, "no picture was shown")
    return CaseToolCall(
        tool=call.tool,
        window=wire_window(call.window),
        bbox_2d=None if call.bbox_2d is None else list(call.bbox_2d),
        evidence_index=evidence_index,
        error=error,
    )


def turns_of(trajectory: Trajectory, evidence: Sequence[CaseEvidence]) -> list[CaseTurn]:
    """The steps of a trajectory; `evidence` is `evidence_of` the same one."""
    index_by_turn: Mapping[int, int] = {zoom.turn: zoom.index for zoom in evidence}
    return [
        CaseTurn(
            index=index,
            thought=thought_of(turn.generation.text),
            text=turn.generation.text,
            mean_entropy_nats=mean_entropy_nats(turn.generation),
            num_tokens=len(turn.generation.token_ids),
            call=_tool_call(turn, index_by_turn.get(index), trajectory.stop_reason),
            answer=parse_turn(turn.generation.token_texts).answer,
        )
        for index, turn in enumerate(trajectory.turns)
    ]


def attempt_of(trajectory: Trajectory, beside: AttemptConsensus) -> CaseAttempt:
    """A trajectory in short; `beside` is how it stands to the others."""
    return CaseAttempt(
        trajectory_id=trajectory.trajectory_id,
        seed=trajectory.seed,
        answer=trajectory.answer,
        stop_reason=trajectory.stop_reason.value,
        num_turns=len(trajectory.turns),
        boxes=[wire_box(box) for box in trajectory.boxes],
        agrees=beside.agrees,
        consensus_iou=beside.consensus_iou,
        answer_token_probability=answer_token_probability(trajectory),
    )


def versions_of(trajectories: Sequence[Trajectory]) -> list[int]:
    """Every policy version that sampled a token, ascending."""
    return sorted(
        {
            span.version
            for trajectory in trajectories
            for turn in trajectory.turns
            for span in turn.generation.version_spans
        }
    )


def option_text(letter: str, choices: Sequence[str]) -> str | None:
    """The text behind a letter; None if the letter names no choice."""
    index = string.ascii_uppercase.find(letter.strip().upper())
    return choices[index] if len(letter.strip()) == 1 and 0 <= index < len(choices) else None


def consensus_of(
    case_id: str,
    region: ConsensusRegion,
    heatmap: Heatmap | None,
    heatmap_sha256: str | None,
    size: ImageSize,
) -> CaseConsensus:
    """The consensus region as a case shows it; the heatmap only where somebody looked."""
    return CaseConsensus(
        num_agreeing=region.num_agreeing,
        rectangles=region.rectangles,
        area_px=region.area_px,
        area_share=region.area_px / size.num_pixels,
        heatmap_url=None if heatmap_sha256 is None else f"/v1/cases/{case_id}/heatmap",
        heatmap_sha256=heatmap_sha256,
        heatmap_max_count=0 if heatmap is None else heatmap.max_count,
    )
