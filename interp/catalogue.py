"""The catalogue of methods, made from METHODS. `python -m interp.catalogue` writes it into README.md."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

from interp import zoo
from interp.method import Method
from interp.methods import METHODS

README = Path(__file__).parent.parent / "README.md"


def families() -> dict[str, tuple[str, str]]:
    """Family -> its title and the question it answers, from the first line of its package."""
    found = {}
    for family in dict.fromkeys(method.family for method in METHODS.values()):
        title, _, question = (import_module(f"interp.methods.{family}").__doc__ or family).partition(":")
        found[family] = (title.strip(), question.strip().capitalize())
    return found


@cache
def passes(key: str) -> tuple[float, float] | None:
    """Forwards and backwards of a method with its default settings on an embedded model that it serves."""
    for name in ("photos", "photos-vit", "stories"):
        if name not in zoo.shelf():
            continue
        model = zoo.load(name)
        if not METHODS[key].refuses(model):
            return METHODS[key].estimate(model, {})
    return None


def cost_text(method: Method) -> str:
    """What a run costs on the embedded model, in words."""
    found = None if method.kind == "intervention" else passes(method.key)
    if found is None:
        return "none of its own" if method.kind == "intervention" else "unknown"
    forwards, backwards = (round(each) for each in found)
    back = f" + {backwards} backward{'s' if backwards > 1 else ''}" if backwards else ""
    return f"{forwards:,} forward{'s' if forwards > 1 else ''}{back}"


def table() -> str:
    """The catalogue as a Markdown table."""
    rows = ["| method | key | what it does | cost | paper |", "|---|---|---|---|---|"]
    for family, (title, question) in families().items():
        rows.append(f"| **{title}** | | {question} | | |")
        for method in sorted(METHODS.values(), key=lambda each: each.key):
            if method.family == family:
                paper = f"[{method.paper.authors.split(',')[0]} {method.paper.year}]({method.paper.url})"
                rows.append(
                    f"| {method.name} | `{method.key}` | {method.doc.summary} | {cost_text(method)} | {paper} |"
                )
    return "\n".join(rows)


def written(text: str) -> str:
    """`text` with the table between its markers."""
    return re.sub(
        r"(<!-- catalogue -->\n).*?(<!-- /catalogue -->)",
        lambda match: f"{match[1]}{table()}\n{match[2]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
    sys.stdout.write(f"{len(METHODS)} methods\n")
