"""A patient's identity taken out of a text, by the words that the file's header knows it by.

What no header tells cannot be found: of a PNG with a name in its question, nothing is removed.
Rather a word too many is removed than one too few; names of two or three letters only where they
begin with a capital, for "is" and "may" are names too. Accents, case and separators do not matter.
"""

import re
import unicodedata
from collections.abc import Iterator

from shared.api.headers import PatientIdentity

REMOVED = "[removed]"

_LEAST_IDENTIFIER_CHARS = 4
"""A shorter number stands for too much else."""
_LONG_NUMBER = re.compile(r"[0-9]{6,}")
"""Part of an identifier that stands for it alone, as in `MRN-123456`."""
_SHORT_NAME_CHARS = 3
_TITLES = (
    "dr",
    "prof",
    "professor",
    "md",
    "phd",
    "msc",
    "bsc",
    "mr",
    "mrs",
    "ms",
    "miss",
    "jr",
    "sr",
)
_WORD = re.compile(r"[^\W_]+")
_BETWEEN = re.compile(r"[\s,;^/=-]*")
_MONTHS = (
    *("jan(?:uary|uar)?", "feb(?:ruary|ruar)?", "mar(?:ch)?|marz", "apr(?:il)?", "may|mai"),
    *("june?|juni", "july?|juli", "aug(?:ust)?", "sept?(?:ember)?", "o[ck]t(?:ober)?"),
    *("nov(?:ember)?", "de[cz](?:ember)?"),
)
_LETTER_BEFORE, _LETTER_AFTER = r"(?<![^\W\d_])", r"(?![^\W\d_])"
_DIGIT_BEFORE, _DIGIT_AFTER = r"(?<!\d)", r"(?!\d)"


def without_identity(text: str, identity: PatientIdentity) -> tuple[str, int]:
    """The text with `[removed]` in the place of identity, and in how many places."""
    folded, places = _folded(text)
    spans: list[tuple[int, int]] = []
    for pattern, needs_capital in _patterns(identity):
        for found in pattern.finditer(folded):
            start, end = places[found.start()], places[found.end() - 1] + 1
            if not needs_capital or text[start].isupper():
                spans.append((start, end))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and (start < merged[-1][1] or _BETWEEN.fullmatch(text, merged[-1][1], start)):
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    for start, end in reversed(merged):
        text = f"{text[:start]}{REMOVED}{text[end:]}"
    return text, len(merged)


def _folded(text: str) -> tuple[str, list[int]]:
    """Without case and accents; and for each character, the index of the one it comes from."""
    characters: list[str] = []
    places: list[int] = []
    for index, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character.casefold()):
            if not unicodedata.combining(part):
                characters.append(part)
                places.append(index)
    return "".join(characters), places


def _patterns(identity: PatientIdentity) -> Iterator[tuple[re.Pattern[str], bool]]:
    """What to look for in a folded text, and whether it must begin with a capital there."""
    names = {
        part for name in identity.names for part in _WORD.findall(_folded(name)[0])
    }.difference(_TITLES)
    for name in names:
        if len(name) > 1:
            yield _name_pattern(name), name.isascii() and len(name) <= _SHORT_NAME_CHARS
    for identifier in set(identity.identifiers):
        characters = "".join(_WORD.findall(_folded(identifier)[0]))
        if len(characters) >= _LEAST_IDENTIFIER_CHARS:
            yield _identifier_pattern(characters), False
        for digits in _LONG_NUMBER.findall(identifier):
            yield _identifier_pattern(digits), False
    for date in set(identity.dates):
        yield _date_pattern(date), False


def _name_pattern(name: str) -> re.Pattern[str]:
    """Also with an s of possession; "ue" finds the ü of a name that a header spells in ASCII."""
    spelt = re.sub(r"(?<=[aou])e", "e?", re.escape(name))
    if any(unicodedata.category(character) == "Lo" for character in name):
        return re.compile(spelt)  # a script without spaces between words
    return re.compile(f"{_LETTER_BEFORE}{spelt}s?{_LETTER_AFTER}")


def _identifier_pattern(characters: str) -> re.Pattern[str]:
    """With any separators in it; as part of a word only where a digit meets a letter."""
    before = _DIGIT_BEFORE if characters[0].isdecimal() else _LETTER_BEFORE
    after = _DIGIT_AFTER if characters[-1].isdecimal() else _LETTER_AFTER
    spelt = r"[\W_]{0,2}".join(map(re.escape, characters))
    return re.compile(f"{before}{spelt}{after}")


def _date_pattern(date: str) -> re.Pattern[str]:
    """YYYYMMDD in the usual spellings: digits in three orders, or the month by its name."""
    year, month, day = date[:4], int(date[4:6]), int(date[6:8])
    y, m, d, sep = rf"(?:{year}|{year[2:]})", f"0?{month}", f"0?{day}", r"\s?[-./\s]\s?"
    name = _MONTHS[month - 1] if 1 <= month <= 12 else "(?!)"
    ordinal, gap = f"{d}(?:st|nd|rd|th)?", r"[\s.,-]{0,2}"
    spellings = (
        date,
        f"{year}{sep}{m}{sep}{d}",
        f"{d}{sep}{m}{sep}{y}",
        f"{m}{sep}{d}{sep}{y}",
        f"{ordinal}{gap}(?:of )?(?:{name}){gap}{y}",
        f"(?:{name}){gap}{ordinal}{gap}{y}",
    )
    return re.compile(f"{_DIGIT_BEFORE}{_LETTER_BEFORE}(?:{'|'.join(spellings)}){_DIGIT_AFTER}")
