"""R_acc on the answers models really give, and on those that released harnesses get wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cca.matching import (
    MAX_ANSWER_CHARS,
    accuracy,
    chosen_letter,
    is_same_text,
    normal_form,
    polarity,
    token_f1,
    words,
)
from shared.problem import AnswerKind

OPTIONS = ["pneumonia", "pleural effusion", "normal heart", "Vitamin C deficiency"]
LESIONS = ["ring", "cross", "star", "dots"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("[b]", "B"),
        ("**B**", "B"),
        ("Option B", "B"),
        ("Answer: B", "B"),
        ("The correct answer is (B).", "B"),
        ("The answer is option B", "B"),
        ("B. pleural effusion", "B"),
        ("B) Pleural effusion.", "B"),
        ("B - pleural effusion", "B"),
        ("B pleural effusion", "B"),
        ("B. There is fluid at the base.", "B"),
        ("pleural effusion", "B"),
        ("The pleural  Effusion.", "B"),
        ("The answer is pleural effusion", "B"),
        ("D. Vitamin C deficiency", "D"),
    ],
)
def test_an_answer_that_commits_to_an_option_has_its_letter(answer: str, letter: str) -> None:
    assert chosen_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        ".",
        "I cannot tell",
        "A lesion is seen",
        "a pneumonia or a pleural effusion",
        "Abscess",
        "A or B",
        "A and B",
        "A, B",
        "A/B",
        "A. or B.",
        "A) pneumonia B) pleural effusion",
        "A. pleural effusion",
        "not A",
        "The answer is not A",
        "E",
        "None of them",
        "Because",
    ],
)
def test_an_answer_that_commits_to_nothing_has_no_letter(answer: str) -> None:
    assert chosen_letter(answer, OPTIONS) is None
    assert accuracy(answer, "A", AnswerKind.CHOICE, OPTIONS) == 0.0


def test_grades_in_roman_numerals_are_texts_where_the_letter_is_no_option() -> None:
    grades = ["I", "II", "III", "IV"]
    assert [chosen_letter(grade, grades) for grade in grades] == ["A", "B", "C", "D"]


def test_options_with_the_same_text_can_only_be_told_by_letter() -> None:
    assert chosen_letter("cyst", ["cyst", "Cyst"]) is None
    assert chosen_letter("B", ["cyst", "Cyst"]) == "B"


def test_hepatitis_alone_is_not_hepatitis_a() -> None:
    assert chosen_letter("hepatitis", ["hepatitis A", "hepatitis B"]) is None
    assert chosen_letter("hepatitis b", ["hepatitis A", "hepatitis B"]) == "B"


def test_choice_is_right_by_letter_and_by_text_and_wrong_otherwise() -> None:
    for answer, right in [("C", 1.0), ("star", 1.0), ("A", 0.0), ("ring", 0.0), ("moon", 0.0)]:
        assert accuracy(answer, "C", AnswerKind.CHOICE, LESIONS) == right, answer


@pytest.mark.parametrize("kind", list(AnswerKind))
@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_no_answer_scores_nothing(answer: str | None, kind: AnswerKind) -> None:
    gold = "yes" if kind is AnswerKind.YES_NO else "A"
    assert accuracy(answer, gold, kind, LESIONS) == 0.0


def test_an_answer_of_over_a_thousand_characters_scores_nothing() -> None:
    padding = " " * (MAX_ANSWER_CHARS - 3)
    assert accuracy("yes" + padding, "yes", AnswerKind.YES_NO) == 1.0
    assert accuracy("yes" + padding + " ", "yes", AnswerKind.YES_NO) == 0.0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("Yes, there is a fracture", "yes"),
        ("no, the heart is normal", "no"),
        ("No there is not", "no"),
        ("The answer is: no", "no"),
        ("normal heart", None),
        ("nodule", None),
        ("not sure", None),
        ("no evidence of a fracture", None),
        ("yes and no", None),
        ("yes or no", None),
        ("I cannot tell", None),
        ("maybe yes", None),
        ("", None),
    ],
)
def test_polarity_is_said_in_words_not_found_in_them(answer: str, said: str | None) -> None:
    assert polarity(answer) == said


def test_yes_or_no_may_be_chosen_by_letter_when_they_are_options() -> None:
    assert accuracy("B", "no", AnswerKind.YES_NO, ["Yes", "No"]) == 1.0
    assert accuracy("A", "no", AnswerKind.YES_NO, ["Yes", "No"]) == 0.0
    assert accuracy("A", "yes", AnswerKind.YES_NO) == 0.0


def test_normal_heart_is_not_the_free_text_answer_no() -> None:
    assert accuracy("normal heart", "no", AnswerKind.FREE_TEXT) == 0.0
    assert accuracy("No.", "no", AnswerKind.FREE_TEXT) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("Left lung", "left lung.", True),
        ("the left lung", "left lung", True),
        ("The answer is left lung", "left lung", True),
        ("left-lung", "left lung", True),
        ("ＭＲＩ", "mri", True),
        ("mass in the left upper lobe of lung", "mass in left upper lobe of the lung", True),
        ("enlarged heart with clear lung fields", "enlarged heart with clear lungs", False),
        ("right lung", "left lung", False),
        ("large mass in the right lower lobe", "large mass in the left lower lobe", False),
        ("pleural effusion at the left base", "no pleural effusion at the left base", False),
        ("a lesion of 5 cm in the liver", "a lesion of 1.5 cm in the liver", False),
        ("-2.5", "2.5", False),
        ("> 5 cm", "< 5 cm", False),
        ("HER2+", "HER2-", False),
        ("hepatitis", "hepatitis A", False),
        ("vitamin a", "Vitamin A", True),
        ("?", "?", True),
        ("!", "?", False),
    ],
)
def test_free_text_is_the_same_by_words(answer: str, gold: str, same: bool) -> None:
    assert is_same_text(answer, gold) is same
    assert accuracy(answer, gold, AnswerKind.FREE_TEXT) == float(same)


def test_token_f1_by_hand() -> None:
    assert token_f1(["a", "b", "b"], ["b", "b", "c", "d"]) == pytest.approx(4 / 7)
    assert token_f1(["a"], ["b"]) == 0.0


def test_exactly_three_quarters_is_enough() -> None:
    answer, gold = "one two three four", "one two three five"
    assert token_f1(words(answer), words(gold)) == 0.75
    assert is_same_text(answer, gold)


@given(st.text(max_size=60))
def test_every_text_is_the_same_as_itself_and_matching_never_fails(text: str) -> None:
    assert is_same_text(text, text)
    for kind in AnswerKind:
        normal_form(text, kind, LESIONS)
        accuracy(text, "yes" if kind is AnswerKind.YES_NO else "A", kind, LESIONS)


@given(st.text(max_size=40))
def test_a_choice_scores_for_at_most_one_gold_letter(text: str) -> None:
    scores = [accuracy(text, letter, AnswerKind.CHOICE, LESIONS) for letter in "ABCD"]
    assert sum(scores) <= 1.0


def test_normal_forms_are_what_votes_are_counted_by() -> None:
    assert normal_form("b) cross", AnswerKind.CHOICE, LESIONS) == "B"
    assert normal_form("Cannot tell!", AnswerKind.CHOICE, LESIONS) == "cannot tell"
    assert normal_form("Yes, clearly", AnswerKind.YES_NO) == "yes"
    assert normal_form("The Left lung.", AnswerKind.FREE_TEXT) == "left lung"
    assert normal_form(" ", AnswerKind.FREE_TEXT) is None
