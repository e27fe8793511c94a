"""Labels and notes of one's own for features: kept in the visit, in the link while they are few, and as JSON."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Any

import streamlit as st

from interp import Unsuitable
from interp.sae import NAME

MOST = 2000
"""Characters of a link that labels may take."""
LONGEST = 60, 600
"""Characters of a label, and of a note."""
Labels = dict[str, dict[int, tuple[str, str]]]


def own() -> Labels:
    """All labels of this visit: (label, note) by the name of the SAE and the number of the feature."""
    found: Labels = st.session_state.setdefault("labels", {})
    return found


def of(sae: str) -> dict[int, str]:
    """One's own labels of an SAE's features."""
    return {feature: label for feature, (label, _) in own().get(sae, {}).items() if label}


def put(sae: str, feature: int, label: str, note: str) -> None:
    """Label a feature; both empty: forget it."""
    mine = own().setdefault(sae, {})
    mine[feature] = (label.strip()[: LONGEST[0]], note.strip()[: LONGEST[1]])
    if mine[feature] == ("", ""):
        del mine[feature]
    if not mine:
        del own()[sae]


def take(new: Labels) -> None:
    """Take labels over into this visit; where both name a feature, the new ones stand."""
    for sae, features in new.items():
        own().setdefault(sae, {}).update(features)


def to_json() -> str:
    return json.dumps({sae: {str(n): list(each) for n, each in features.items()} for sae, features in own().items()},
                      ensure_ascii=False, separators=(",", ":"))  # fmt: skip


def from_json(text: str | bytes) -> Labels:
    """Read what `to_json` wrote.

    Raises:
        Unsuitable: it is something else.
    """
    try:
        return {_sae(sae): {_number(n): _pair(each) for n, each in features.items()}
                for sae, features in json.loads(text).items()}  # fmt: skip
    except (ValueError, TypeError, AttributeError, RecursionError) as problem:
        if isinstance(problem, Unsuitable):
            raise
        raise Unsuitable("This is no file of labels; take one that was downloaded here.") from None


def packed() -> str:
    """All labels as one short parameter of a link; nothing where there are none, or too many."""
    if not own():
        return ""
    text = base64.urlsafe_b64encode(zlib.compress(to_json().encode(), 9)).decode().rstrip("=")
    return text if len(text) <= MOST else ""


def unpack(text: str) -> Labels:
    """Read what `packed` wrote.

    Raises:
        Unsuitable: it is cut off or something else.
    """
    try:
        data = base64.urlsafe_b64decode(text[: 2 * MOST] + "=" * (-len(text) % 4))
        return from_json(zlib.decompressobj().decompress(data, 200_000))
    except (binascii.Error, zlib.error, ValueError) as problem:
        if isinstance(problem, Unsuitable):
            raise
        raise Unsuitable("The labels in this link can't be read; the link may have been cut off.") from None


def _sae(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise ValueError
    return name


def _number(text: Any) -> int:
    number = int(text)
    if not 0 <= number < 10**7:
        raise ValueError
    return number


def _pair(value: Any) -> tuple[str, str]:
    label, note = value
    if not isinstance(label, str) or not isinstance(note, str):
        raise TypeError
    (label + note).encode()  # raises for halves of characters, which no link can carry
    return label[: LONGEST[0]], note[: LONGEST[1]]
