"""Valid links to every method, and a mutator that breaks texts and bytes: seeded, so that every case can be had again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qsl, quote, urlencode

from interp.experiment import Call, Experiment, Sample
from interp.method import Control, Method, Region, _unwrap
from interp.methods import METHODS
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, Target, TextSet, gallery
from interp.sites import Site

WORDS = (
    "The cat",
    " Mary",
    "é🦊",
    "a & b = c",
    "100% #1+",
    '{"x": [1]}',
    "\n\t",
    "<b>",
    "\u202eabc",
    "😀" * 9,
    "'\"\\",
)
SITES = ("resid_post.1", "z.0.1", "stage.2", "embed", "input", "module:encoder.stages.1:in", "pattern.3", "mlp_post.0")


def texts(draw: random.Random, many: int = 4) -> tuple[str, ...]:
    return tuple(draw.choice(WORDS) + str(n) for n in range(draw.randint(1, many)))


def sample(draw: random.Random, kind: type) -> Sample:
    """Something to look at."""
    made: dict[type, Callable[[], Sample]] = {
        Image: lambda: Image.gallery(draw.choice(sorted(gallery()))),
        ImageSet: lambda: ImageSet(tuple(Image.gallery(each) for each in draw.sample(sorted(gallery()), 2))),
        Prompt: lambda: Prompt(draw.choice(WORDS) + "."),
        PromptPair: lambda: PromptPair(draw.choice(WORDS) + "a", draw.choice(WORDS) + "b", " c", ""),
        Contrast: lambda: Contrast(texts(draw), texts(draw)),
        TextSet: lambda: TextSet(texts(draw)),
    }
    return made[kind]()


def setting(draw: random.Random, control: Control) -> Any:
    """A value that the control takes; its default where none can be thought of."""
    base, marks = _unwrap(control.hint)
    if draw.random() < 0.3 and control.default is not control.hint:
        return control.default
    if any(isinstance(mark, Region) for mark in marks):
        left, top, right, bottom = (draw.random() / 2 for _ in range(4))
        return left, top, 0.5 + right, 0.5 + bottom
    return _value(draw, control, base)


def _value(draw: random.Random, control: Control, base: Any) -> Any:
    if get_origin(base) is Literal:
        return draw.choice(get_args(base))
    if get_origin(base) is tuple:
        inner = get_args(base)
        if inner[-1] is Ellipsis:
            return tuple(_value(draw, control, inner[0]) for _ in range(draw.randint(0, 5)))
        return tuple(_value(draw, control, each) for each in inner)
    if base is bool:
        return draw.random() < 0.5
    if base in (int, float):
        low, high = (control.range.low, control.range.high) if control.range else (0, 1000)
        return draw.randint(int(low), int(high)) if base is int else draw.uniform(low, high)
    if base is Site:
        return Site.parse(draw.choice(SITES))
    if base is Target:
        return Target(draw.choice((None, 3, " Mary", "cat")))
    if base in (Image, ImageSet, Prompt, PromptPair, Contrast, TextSet):
        return sample(draw, base)
    if base is str and control.kind in ("text", "sample"):
        return draw.choice(WORDS)
    return control.default


def call(draw: random.Random, method: Method) -> Call:
    return Call(method.key, **{each.name: setting(draw, each) for each in method.controls})


def experiment(draw: random.Random, lens: Method) -> Experiment:
    """One that looks through that lens, after some interventions."""
    kind = draw.choice(lens.samples)
    fit = [each for each in METHODS.values() if each.kind == "intervention" and set(each.samples) & set(lens.samples)]
    changes = [call(draw, each) for each in draw.sample(fit, min(len(fit), draw.randint(0, 3)))]
    return Experiment(
        draw.choice(("stories", "photos", "owner/model@main")), sample(draw, kind), call(draw, lens), changes
    )  # type: ignore[arg-type]


def experiments(seed: int, rounds: int = 1) -> Iterator[Experiment]:
    """Of every lens."""
    draw = random.Random(seed)
    for _ in range(rounds):
        for each in METHODS.values():
            if each.kind == "lens":
                yield experiment(draw, each)


# ---------------------------------------------------------------------------------------------------------- breaking

NASTY = (
    "", " ", "null", "NaN", "Infinity", "-Infinity", "1e309", "-0.0", "1e-400", "9" * 5000, "9" * 25, str(2**63), str(-(2**63) - 1),
    "true", "[]", "{}", "[" * 3000, '{"a":' * 3000, "[[[[]]]]", "\ud800", "\\ud800", "\x00", "\\u0000", "\u202e", "\ufeff", "\u200b",
    "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "C:\\windows", "~root", "local:" + "f" * 64,
    "sha256:" + "0" * 64, "sha256:../x", "module:" + "a." * 2000, "module:", "resid_post.99999", "z.0.0.0", "%00", "%", "%zz", "&", "=", ";",
    "<script>alert(1)</script>", "${7*7}", "{{7*7}}", "__class__", "__import__('os')", "'; DROP TABLE x", "a" * 20_000, "😀" * 3000,
    "١٢٣", "１２", "1_000", "0x10", "+1", " 1", "1.5e3", '"', "'", "\\", "{", "}", "]", '{"site":"embed"}', '{"target":[1]}', '{"prompt":{}}',
    '{"image":"sha256:x"}', '{"texts":"[[1]]"}', '{"texts":[["a"]]}', '{"pair":"[]"}', '{"contrast":"[\\"ab\\",\\"c\\"]"}', '{"images":"[1]"}',
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "\x00",
    [], {}, [[]], [None], {"a": 1}, [0] * 20_000, ["a"] * 300, "a" * 20_000, {"site": "embed"}, {"site": None}, {"target": {}},
    {"prompt": ""}, {"image": 5}, {"texts": "{}"}, {"images": json.dumps(["cat"] * 300)}, {"pair": "5"}, {"contrast": "[[1],[2]]"},
)  # fmt: skip


def broken(draw: random.Random, text: str) -> str:
    """The text with one to four places broken: characters, slices, words that parsers fear."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, to = sorted(draw.randint(0, len(text)) for _ in range(2))
        to = min(to, at + draw.choice((0, 1, 3, 20, 10_000)))
        new = draw.choice(
            (lambda: draw.choice(NASTY), lambda: chr(draw.randrange(1, 0x3000)), lambda: text[at:to] * 3, lambda: "")
        )()
        text = text[:at] + new + text[to:]
    return text


def broken_value(draw: random.Random, value: Any) -> Any:
    """A structure of JSON with one place broken."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        how = draw.random()
        if how < 0.1:
            return {each: value[each] for each in value if each != key}
        if how < 0.2:
            return {**value, draw.choice(NASTY): draw.choice(VALUES)}
        return {**value, key: broken_value(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], broken_value(draw, value[at]), *value[at + draw.randint(0, 1) :]]
    if isinstance(value, str) and draw.random() < 0.5:
        return broken(draw, value)
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.5:
        return value * draw.choice((-1, 10, 1e10, 1e300)) if abs(value) < 1e5 else -value
    return draw.choice(VALUES)


def broken_link(draw: random.Random, found: Experiment) -> str:
    """A link to it that is broken: as text, or in one parameter, or with parameters doubled, swapped, left out."""
    link = found.to_url()
    if draw.random() < 0.4:
        return broken(draw, link)
    pairs = parse_qsl(link[1:], keep_blank_values=True)
    at = draw.randrange(len(pairs))
    key, value = pairs[at]
    how = draw.randrange(7)
    if how == 0:
        del pairs[at]
    elif how == 1:
        pairs += [pairs[at]] * draw.choice((1, 3, 60, 200))
    elif how == 2:
        pairs[at] = (draw.choice(NASTY), value)
    elif how == 3:
        draw.shuffle(pairs)
    elif how == 4 and key in ("lens", "do") and "{" in value:
        name, _, rest = value.partition("{")
        pairs[at] = (key, name + json.dumps(broken_value(draw, json.loads("{" + rest))))
    else:
        pairs[at] = (key, broken(draw, value))
    return "?" + urlencode(pairs, quote_via=quote, errors="surrogatepass")


def broken_json(draw: random.Random, found: Experiment) -> str:
    """Its JSON, broken as text or as a structure, or with a key twice."""
    text = found.to_json()
    how = draw.random()
    if how < 0.3:
        return broken(draw, text)
    if how < 0.35:
        return '{"lens":5,' + text[1:]
    return json.dumps(broken_value(draw, json.loads(text)), ensure_ascii=draw.random() < 0.5)


def damaged(draw: random.Random, data: bytes, most: int = 9) -> bytes:
    """Bytes with some of them changed, cut out, doubled, or made the end."""
    body = bytearray(data)
    for _ in range(draw.randint(1, most)):
        at = draw.randrange(max(len(body), 1))
        how = draw.randrange(6)
        if how < 3:
            body[at : at + 1] = bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))])
        elif how == 3:
            del body[at : at + draw.choice((1, 2, 4, 100))]
        elif how == 4:
            body[at:at] = body[at : at + draw.choice((1, 4, 64))] * draw.choice((1, 3))
        else:
            body[at : at + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
            )
    return bytes(body[: draw.randrange(len(body) + 1)] if draw.random() < 0.1 else body)
