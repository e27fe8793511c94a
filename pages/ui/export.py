"""A view as one HTML file that needs no server and no network: what is shown, what it is, and its numbers."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from itertools import groupby
from typing import Any

from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.results import Result
from interp.samples import Image, Prompt, PromptPair
from pages.ui import components

MOST = 2**20
"""Bytes of numbers up to which they are part of the file."""
ROWS = 500
"""Rows of a table that are written."""
ASKING = ("try_text", "condition")
"""Components that ask the server; a file has none."""
SIDE_BY_SIDE = ("hero", "guesses", "feature", "html")
"""Components of which several in turn stand beside each other."""
LABELLED = ("cards", "strip", "patches", "life")
"""Components that do not show what they are called."""
HEADINGS = {"guesses": "What the model says", "meters": "What it does, what it breaks"}


def page(
    experiment: Experiment, result: Result, shown: dict[str, tuple[str, dict[str, Any]]], title: str, link: str
) -> bytes:
    """The file.

    Args:
        shown: what the page shows, by key: the name of a component and what it was mounted with.
        link: opens the same view where there is a server.
    """
    kept = [each for each in shown.values() if each[0] not in ASKING]
    used = sorted({name for name, _ in kept} - {"html", "table"})
    script = _script(used)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    css = (components.FOLDER / "export.css").read_text()
    data = [_data("styles", {name: components.style(name) for name in used})]
    # a number takes at least two characters: what can't fit is not written out to be counted
    numbers = result.to_json() if sum(each.size for each in result.arrays().values()) <= MOST // 2 else ""
    numbers = numbers if len(numbers) <= MOST else ""
    body = [
        _facts(experiment, title),
        *_figures(kept, data),
        *_explained(experiment),
        *_taken(experiment, result, numbers, link),
    ]
    if numbers:
        data.append(_data("numbers", json.loads(numbers)))
    data.append(_data("experiment", json.loads(experiment.to_json())))
    return "\n".join((
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{html.escape(title)} Actiscope</title>\n<style>{css}</style>\n</head>\n<body>\n<main>",
        *body, "</main>", *data, f"<script>{script}</script>\n</body>\n</html>\n",
    )).encode()  # fmt: skip


def _script(names: list[str]) -> str:
    """The components' modules as one script, which the policy of the file knows by its hash."""
    parts = ["'use strict';\nconst components = {};"]
    for name in names:
        source = (components.FOLDER / f"{name}.js").read_text()
        source = re.sub(r"^export default function\s*\w*", "const draw = function ", source, flags=re.MULTILINE)
        parts.append(f"components[{json.dumps(name)}] = (() => {{\n{source}\n;return draw;\n}})();")
    text = "\n".join((*parts, (components.FOLDER / "export.js").read_text()))
    assert "</script" not in text.lower() and "<!--" not in text, "it would end the script that holds it"
    return text


def _data(name: str, value: Any) -> str:
    """A value as JSON in which nothing can end the element that holds it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _facts(experiment: Experiment, title: str) -> str:
    method, sample = METHODS[experiment.lens.method], experiment.sample
    changes = "\n".join(map(said, experiment.interventions)) or "none"
    rows = {
        "Method": said(experiment.lens), "Model": experiment.model, "Changes": changes,
        "Photo" if isinstance(sample, Image) else "Input": sample_text(sample),
    }  # fmt: skip
    cells = "".join(f"<dt class=quiet>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in rows.items())
    return (
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(method.doc.summary)}</p>"
        f"<dl class=facts>{cells}</dl></header>"
    )


def said(call: Call) -> str:
    """A call as people read it: "Steer: direction stories/sentiment, layer 2, strength -0.5"."""
    plain: dict[str, Any] = json.loads(str(call).removeprefix(call.method) or "{}")

    def text(value: Any) -> str:
        if isinstance(value, dict):  # a site, a target, a sample
            return ", ".join(str(each) for each in value.values())
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value[:12])) + (", …" if len(value) > 12 else "") + "]"
        return f"{value:g}" if isinstance(value, float) else str(value)

    settings = ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in plain.items())
    return METHODS[call.method].name + (f": {settings}" if settings else "")


def sample_text(sample: Any) -> str:
    """What is looked at, as people read it."""
    if isinstance(sample, Image):
        return sample.name.replace("_", " ") or "a photo"
    if isinstance(sample, PromptPair):
        return f"{sample.clean}\n{sample.corrupted}"
    return sample.text if isinstance(sample, Prompt) else str(sample)


def _figures(kept: list[tuple[str, dict[str, Any]]], data: list[str]) -> list[str]:
    """Places for the components, in the order of the page; what they are drawn from is added to `data`."""
    out: list[str] = []
    for name, group in groupby(kept, lambda each: each[0]):
        places = []
        for _, value in group:
            heading = HEADINGS.get(name) or (value.get("label") if name in LABELLED else "") or value.get("heading", "")
            place = f"<h2>{html.escape(heading)}</h2>" if heading else ""
            if name == "html":
                place += value["html"]
            elif name == "table":
                place += _table(value)
            else:
                key = f"data-{len(data)}"
                data.append(_data(key, {"name": name, "data": value | ({"hint": ""} if "hint" in value else {})}))
                place += f'<div data-component="{key}"></div>'
            places.append(f"<div>{place}</div>")
        rows = ["".join(places)] if name in SIDE_BY_SIDE else places
        out += [f'<div class="row">{each}</div>' for each in rows]
    return out


def _table(value: dict[str, Any]) -> str:
    def cell(each: Any) -> str:
        return html.escape(f"{each:.4g}" if isinstance(each, float) else str(each))

    head = "".join(f"<th>{cell(each)}</th>" for each in value["columns"])
    rows = "".join("<tr>" + "".join(f"<td>{cell(each)}</td>" for each in row) + "</tr>" for row in value["rows"][:ROWS])
    more = len(value["rows"]) - ROWS
    rest = f'<p class="quiet">{more:,} more rows are on the page.</p>' if more > 0 else ""
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>{rest}'


def _explained(experiment: Experiment) -> list[str]:
    """What the method is, what it assumes, when it misleads, and the paper."""
    method = METHODS[experiment.lens.method]
    out = ["<h2>What am I seeing?</h2>"]
    out += [f"<pre>{html.escape(method.doc.formula)}</pre>"] if method.doc.formula else []
    out += [f"<p>{html.escape(method.doc.remarks)}</p>"] if method.doc.remarks else []
    for section, heading in (("Assumes", "What it assumes"), ("Misleads", "When it misleads")):
        if section in method.doc.sections:
            text = " ".join(method.doc.sections[section].split())
            out.append(f"<p><b>{heading}.</b> {html.escape(text)}</p>")
    paper = f'<a href="{html.escape(method.paper.url)}" rel="noreferrer">{html.escape(str(method.paper))}</a>'
    return [*out, f"<p>{paper}</p>", _folded("Cite (BibTeX)", method.paper.bibtex())]


def _taken(experiment: Experiment, result: Result, numbers: str, link: str) -> list[str]:
    """The numbers, and how to have them again."""
    out = ["<h2>Its numbers, and how to have them again</h2>"]
    out += [f"<p>{html.escape(result.note)}</p>"] if result.note else []
    if result.residual:
        meaning = html.escape(result.residual.meaning)
        out.append(f"<p>Residual {result.residual.value:.3g}: {meaning}.</p>")
    name = experiment.lens.method
    files = [f'<a data-file="experiment" download="{name}.experiment.json">The experiment as JSON</a>']
    if numbers:
        files.append(f'<a data-file="numbers" download="{name}.json">All numbers as JSON</a>')
    else:
        files.append(f"the numbers are over {MOST >> 20} MB: they are in the page's downloads")
    out.append(f"<p>{' · '.join(files)}</p>")
    out.append(_folded("Python", experiment.to_python()))
    if link.startswith(("http://", "https://")):
        out.append(f'<p><a href="{html.escape(link)}" rel="noreferrer">This view, where it was made</a></p>')
    foot = "Saved from Actiscope. Everything in this file works without a network; to change something, open the link."
    return [*out, f'<footer class="quiet">{foot}</footer>']


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"
