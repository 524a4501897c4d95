"""Whether a DICOM header says, or lets one suspect, that text is burned into the pixels.

The rules are those of the RSNA's Clinical Trial Processor and others, as deid ships them. They
look at the header alone: no pixel is read for text, so that "not stated" promises nothing.
"""

import warnings
from typing import Any, cast

from pydicom.dataset import Dataset

from shared.api.headers import BurnedInText

with warnings.catch_warnings():  # it asks pydicom for a module that pydicom 4 will not have
    warnings.simplefilter("ignore", DeprecationWarning)
    from deid.config import DeidRecipe
    from deid.dicom.pixels import has_burned_pixels

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MAX_REASONS = 8
_RULES = DeidRecipe("dicom")
_CLEAN = "whitelist"
"""The group of rules by which a header speaks for clean pixels."""


def burned_in_text(dataset: Dataset) -> tuple[BurnedInText, list[str]]:
    """What the header says of text in the pixels, and the rules that hold."""
    try:
        said = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
        found = has_burned_pixels(dataset, deid=_RULES)
        results = cast("list[dict[str, Any]]", found["results"])
        sop_class = str(dataset.get("SOPClassUID") or "")
    except Exception as error:  # noqa: BLE001 - a damaged header speaks for nothing
        return "suspected", [f"the header could not be checked ({type(error).__name__})"]
    if said == "YES":
        return "declared", ["BurnedInAnnotation is YES"]
    if said == "NO":
        return "declared_absent", ["BurnedInAnnotation is NO"]
    reasons = [
        f"deid {rule['group']}: {' '.join(str(rule['reason']).split()).removeprefix('and ')}"
        for rule in results
        if rule["group"] != _CLEAN
    ]
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(f"{_SECONDARY_CAPTURE}."):
        reasons.insert(0, "the SOP class is secondary capture")
    if not reasons:
        return "not_stated", []
    return "suspected", list(dict.fromkeys(reasons))[:_MAX_REASONS]
