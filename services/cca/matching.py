"""Answers to their normal form, and R_acc: a rule-based match with the gold answer (METHOD.md).

Strict where released harnesses err: an answer that does not commit to one option or to one of yes
and no has no letter and no polarity. "", "I cannot tell" and "A lesion" are not A, "normal heart"
and "no evidence of a fracture" are not the answer no, "A or B" is neither.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from shared.problem import AnswerKind

MAX_ANSWER_CHARS = 1000
"""An answer longer than this scores 0 (METHOD.md, Reward)."""

F1_THRESHOLD = 0.75
"""Token-F1 from which a free-text answer counts as right (METHOD.md, ours)."""

_LEAD_IN = re.compile(
    r"^(?:(?:so|therefore|thus|hence)\s*,?\s*)?(?:the\s+|my\s+)?(?:(?:correct|final|best|right)\s+)?"
    r"(?:(?:answer|option|choice)\s*(?:is|would\s+be|:|=)\s*(?:(?:option|choice)\s+)?:?\s*"
    r"|(?:answer|option|choice)\s+(?=[(\[]?[A-Z]\b))",
    re.IGNORECASE,
)
_LETTER_ALONE = re.compile(r"^[(\[{]?\s*([A-Za-z])\s*[)\]}.:]*$")
_LETTER_FIRST = re.compile(r"^(?:[(\[{]\s*([A-Za-z])\s*[)\]}][.:]?|([A-Za-z])\s*[).:\]])\s+(.*)$")
_LETTER_BEFORE_TEXT = re.compile(r"^([A-Z])\s*[-–,]?\s+(.*)$")
_MORE_LETTERS = re.compile(r"^(?:or|and|&|/)\b|(?<!\w)[A-Z]\s*[).:\]]")
_WORD = re.compile(
    r"(?<!\w)[-−]?\d+(?:[.,]\d+)*"  # a number with its sign
    r"|\d+|[^\W\d_][^\W_]*"
    r"|[<>≤≥]|(?<=\w)[+−-](?=$|[\s,.;)])"  # below, above; "HER2+"
)
_YES_NO = re.compile(r"^(yes|no)\b\s*([^\w\s]?)\s*(\w*)", re.IGNORECASE)
_ARTICLE = re.compile(r"^\W*(?:an?|the)\s+(?=\w)")
# fmt: off
_AFTER_BARE_YES_NO = frozenset((
    "there", "it", "this", "that", "the", "these", "those", "they", "he", "she", "i",
))
_MEANING_TURNS_ON = frozenset((
    "no", "not", "without", "never", "none", "absent", "absence", "negative", "positive", "nor",
    "neither", "cannot", "non", "left", "right", "bilateral", "unilateral", "both", "upper",
    "lower", "anterior", "posterior", "medial", "lateral", "superior", "inferior", "increased",
    "decreased", "benign", "malignant", "normal", "abnormal", "<", ">", "≤", "≥", "+", "-", "−",
))
# fmt: on


def words(text: str) -> list[str]:
    """Case-folded words and numbers, without an article that leads."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_ARTICLE.sub("", folded, count=1))


def normalise(text: str) -> str:
    """The words of a text, joined by blanks."""
    return " ".join(words(text))


def is_answered(answer: str | None) -> bool:
    """Whether there is an answer to judge: not empty, and not over the length limit."""
    return answer is not None and answer.strip() != "" and len(answer) <= MAX_ANSWER_CHARS


def chosen_letter(answer: str, options: Sequence[str]) -> str | None:
    """The one option an answer commits to, by letter or by its text; None if it does not."""
    answer = _plain(answer)
    alone = _LETTER_ALONE.match(answer)
    letter = _valid(alone[1], options) if alone else None
    letter = letter or _letter_of_text(answer, options)
    if letter is not None:
        return letter
    first = _LETTER_FIRST.match(answer)
    if first:
        return _letter_with_text(first[1] or first[2], first[3], options)
    before = _LETTER_BEFORE_TEXT.match(answer)
    if before and _letter_of_text(before[2], options) == before[1]:
        return before[1]
    return None


def _plain(answer: str) -> str:
    """Without mark-up around it and without "the answer is"."""
    answer = unicodedata.normalize("NFKC", answer).strip().strip("*_`\"' ").strip()
    return _LEAD_IN.sub("", answer, count=1).strip("*_`\"' ")


def _valid(letter: str, options: Sequence[str]) -> str | None:
    """Upper case, if there is such an option; any letter where the options are not known."""
    index = string.ascii_uppercase.index(letter.upper())
    return letter.upper() if not options or index < len(options) else None


def _letter_of_text(text: str, options: Sequence[str]) -> str | None:
    """Letter of the only option with this normal form."""
    wanted = normalise(text)
    letters = [
        letter
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
        if wanted and normalise(option) == wanted
    ]
    return letters[0] if len(letters) == 1 else None


def _letter_with_text(letter: str, rest: str, options: Sequence[str]) -> str | None:
    """The letter, unless what follows it names another option."""
    if _letter_of_text(rest, options) == letter.upper():
        return letter.upper()
    is_open = _MORE_LETTERS.search(rest) or chosen_letter(rest, options)
    return None if is_open else _valid(letter, options)


def polarity(answer: str, options: Sequence[str] = ()) -> str | None:
    """`yes` or `no`, if the answer says one of them and not the other."""
    if options:
        letter = chosen_letter(answer, options)
        if letter is not None:
            answer = options[string.ascii_uppercase.index(letter)]
    match = _YES_NO.match(_plain(answer))
    if match is None:
        return None
    said, punctuation, following = match[1].lower(), match[2], match[3].lower()
    if following and not punctuation and following not in _AFTER_BARE_YES_NO:
        return None  # "no evidence of …": whether that means no depends on the question
    opposite = "no" if said == "yes" else "yes"
    return None if opposite in words(answer) else said


def token_f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the two multisets of words."""
    num_shared = sum((Counter(answer) & Counter(gold)).values())
    return 2 * num_shared / (len(answer) + len(gold)) if num_shared else 0.0


def is_same_text(answer: str, gold: str) -> bool:
    """Normalised equality, or token-F1 ≥ 0.75 with the same negations, sides and numbers.

    The last condition is ours: one such word turns the meaning and hardly moves F1.
    """
    wanted = words(gold)
    given = wanted if words(answer) == wanted else words(_plain(answer))
    if not given or not wanted:
        return answer.strip() == gold.strip()
    if given == wanted:
        return True
    return _turning(given) == _turning(wanted) and token_f1(given, wanted) >= F1_THRESHOLD


def _turning(tokens: Sequence[str]) -> Counter[str]:
    return Counter(t for t in tokens if t in _MEANING_TURNS_ON or t[-1].isdigit())


def normal_form(answer: str | None, kind: AnswerKind, options: Sequence[str] = ()) -> str | None:
    """What votes are counted by: the letter, `yes` or `no`, else the normalised text.

    None if there is no answer.
    """
    if answer is None or not is_answered(answer):
        return None
    committed = None
    if kind is AnswerKind.CHOICE:
        committed = chosen_letter(answer, options)
    elif kind is AnswerKind.YES_NO:
        committed = polarity(answer, options)
    return committed or normalise(_plain(answer)) or answer.strip()


def is_committed(form: str, kind: AnswerKind) -> bool:
    """Whether a normal form is an answer to the question: an option's letter, yes or no, a text."""
    if kind is AnswerKind.CHOICE:
        return len(form) == 1 and form in string.ascii_uppercase
    return kind is not AnswerKind.YES_NO or form in ("yes", "no")


def accuracy(answer: str | None, gold: str, kind: AnswerKind, options: Sequence[str] = ()) -> float:
    """R_acc ∈ {0, 1} (METHOD.md, Reward). `gold` is the letter, `yes`/`no`, or text."""
    if answer is None or not is_answered(answer):
        return 0.0
    if kind is AnswerKind.CHOICE:
        is_right = chosen_letter(answer, options) == gold.strip().upper()
    elif kind is AnswerKind.YES_NO or gold.strip().lower() in ("yes", "no"):
        is_right = polarity(answer, options) == gold.strip().lower()
    else:
        is_right = is_same_text(answer, gold)
    return 1.0 if is_right else 0.0
