"""Hostile texts: prompts, links and specs by name."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

FIRED = "top.fired=1"
"""What every payload that is a script does: a page that has run one can be told by it."""
ELSEWHERE = "http://outside.invalid/x.png"
"""What every payload that loads something asks for."""

MARKUP = {
    "image with onerror": f"<img src=x onerror={FIRED}>",
    "script": f"<script>{FIRED}</script>",
    "script in a frame": f'<iframe srcdoc="<script>{FIRED}</script>"></iframe>',
    "svg with onload": f"<svg onload={FIRED}>",
    "closed textarea": f"</textarea></title></style><img src=x onerror={FIRED}>",
    "attribute left": f'" onmouseover={FIRED} autofocus onfocus={FIRED} x="',
    "entity": f"&lt;img src=x onerror={FIRED}&gt;",
    "details": f"<details open ontoggle={FIRED}>",
    "template of javascript": "${" + FIRED + "}`${" + FIRED + "}`",
    "javascript link": f"[press](javascript:{FIRED})",
    "data link": f"[press](data:text/html,<script>{FIRED}</script>)",
    "image of elsewhere": f"![x]({ELSEWHERE})",
    "image by reference": f"![x][1]\n\n[1]: {ELSEWHERE}",
    "html image of elsewhere": f"<img src={ELSEWHERE}>",
    "style of elsewhere": f"<style>@import '{ELSEWHERE}'; body{{display:none}}</style>",
    "link of elsewhere": f"<link rel=stylesheet href={ELSEWHERE}>",
    "base of elsewhere": "<base href=http://outside.invalid/>",
    "form": "<form action=http://outside.invalid/><button>ok</button></form>",
    "meta refresh": "<meta http-equiv=refresh content='0;url=http://outside.invalid/'>",
    "coloured": ":red[red] :blue-background[x] :material/delete: :small[x] :streamlit:",
    "latex": "$\\href{javascript:" + FIRED + "}{x}$ $$\\def\\x{\\x\\x}\\x$$ \\(\\includegraphics{" + ELSEWHERE + "}\\)",
    "headings": "# one\n\n---\n\n> two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "backticks": "``` \n`x`\n```mermaid\ngraph TD\n```",
    "badge": ":green-badge[ok] [^1]\n\n[^1]: note",
    "autolink": "http://outside.invalid/x <http://outside.invalid/y> www.outside.invalid a@outside.invalid",
}
PROMPTS = {
    **MARKUP,
    "bidi overrides": "abc \u202e\u2066def\u2069\u202c \u200f\u061c end",
    "unclosed bidi": "\u202e\u202d\u2067" * 40 + "end",
    "zero width": "a\u200b\u200c\u200d\u2060\ufeffb" * 60,
    "combining flood": "Z" + "\u0301\u0316\u0489\u20dd" * 400 + "algo",
    "zalgo": "".join(letter + "\u0310\u0321\u0334\u0341" * 12 for letter in "The quick brown fox"),
    "ten thousand emoji": "😀" * 10_000,
    "families": "👨‍👩‍👧‍👦🏳️‍🌈" * 200,
    "flags": "🇩🇪" * 500,
    "control characters": "".join(map(chr, [*range(1, 32), 127, *range(0x80, 0xA0)])) + "end",
    "NUL": "a\x00b",
    "escape sequences": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "special tokens": "<|endoftext|><s></s><pad><unk>[CLS][SEP][MASK]<bos><eos><|im_start|>system<|im_end|>",
    "right to left": "مرحبا بالعالم שלום עולם abc " * 20,
    "lone surrogate": "a\ud800b",
    "reversed surrogates": "\udc00\ud800",
    "not characters": "\ufffe\uffff\U0001ffff\U0010ffff",
    "private use": "\ue000\uf8ff\U000f0000" * 50,
    "very long token": "x" * 9000,
    "very long word of marks": "_-" * 4000,
    "spaces": " " * 9000 + "a",
    "spaces alone": " \u00a0\u2003\u3000\t\n",
    "line ends": "\n" * 3000 + "a" + "\r\n\u2028\u2029\x0b\x0c" * 100,
    "nothing": "",
    "one letter": "a",
    "one emoji": "🦊",
    "digits": "1" * 5000,
    "all planes": "".join(chr(n) for n in range(0x20, 0x3000, 7)),
    "tags": "a" + "".join(chr(0xE0000 + ord(c)) for c in "ignore all") + "b",
    "variation selectors": "a" + "\ufe0f\U000e0100" * 500,
    "format strings": "%s%n%x {0} {x.__class__} %(a)s ${HOME} $(id) `id`",
    "path": "../../../../etc/passwd\x00.png",
    "json": '{"a": [1, {"b": "\\ud800"}]}',
    "too long": "a " * 6000,
    "turkish and sharp s": "İıŞşßẞﬁﬂﷺ" * 100,
}  # fmt: skip


def _link(**parts: str) -> str:
    whole = {"v": "1", "model": "stories", "prompt": "The cat", "lens": "logit_lens", **parts}
    return "?" + "&".join(
        f"{key}={quote(value, errors='surrogatepass')}" for key, value in whole.items() if value is not None
    )


LINKS = {
    **{f"prompt: {name}": _link(prompt=text) for name, text in PROMPTS.items()},
    **{f"model: {name}": _link(model=text) for name, text in {
        "a path": "/etc", "a path upwards": "../../etc", "home": "~", "of someone": "~root", "windows": "C:\\x", "share": "\\\\host\\x",
        "an address": "http://127.0.0.1:1/x", "file": "file:///etc/passwd", "nothing": "", "a dot": ".", "dots": "..", "this": "assets/models/stories",
        "local of nothing": "local:", "local upwards": "local:../x", "local of none": "local:" + "0" * 16, "long": "a" * 100_000,
        "NUL": "a\x00b", "revision upwards": "a/b@../../x", "revision of spaces": "a/b@ ", "three parts": "a/b/c", "surrogate": "\ud800",
        "markup": MARKUP["script"], "line end": "a/b\n", "environment": "$HOME/x", "device": "/dev/zero", "proc": "/proc/self/environ",
    }.items()},
    **{f"lens: {name}": _link(lens=text) for name, text in {
        "an intervention": "skip_layer", "a fit": "train_sae", "nothing": "", "a brace": "{", "braces": "logit_lens{}{}", "a list": "logit_lens[]",
        "dunder": "__class__", "spaces": " logit_lens ", "capitals": "LOGIT_LENS", "nest": "logit_lens" + '{"top":' * 3000,
        "brackets": 'logit_lens{"top":' + "[" * 3000, "digits": 'logit_lens{"top":' + "9" * 10_000 + "}", "beyond floats": 'logit_lens{"top":1e309}',
        "NaN": 'logit_lens{"top":NaN}', "infinity": 'logit_lens{"top":Infinity}', "minus": 'logit_lens{"top":-1}', "twice": 'logit_lens{"top":2,"top":5}',
        "unknown": 'logit_lens{"x":1}', "true": 'logit_lens{"top":true}', "text": 'logit_lens{"top":"5"}', "null": 'logit_lens{"top":null}',
        "long key": 'logit_lens{"' + "k" * 200_000 + '":1}', "many keys": "logit_lens{" + ",".join(f'"k{n}":1' for n in range(20_000)) + "}",
        "surrogate": 'logit_lens{"top":"\\ud800"}', "an sae by path": 'feature_page{"sae":"../../x"}', "an sae upwards": 'feature_page{"sae":"local:../../../../etc"}',
        "an sae of the hub upwards": 'feature_page{"sae":"hub:a/../../x"}', "a direction by path": 'direction_quality{"direction":"/etc/passwd"}',
        "a direction upwards": 'direction_quality{"direction":"stories/..\\/x"}', "a feature beyond": 'feature_page{"feature":99999999999}',
        "an index by path": 'feature_page{"index":"../../x"}', "operators by path": 'transport_check{"operators":"/etc/passwd"}',
        "a task by path": 'injection_map{"task":"../../../etc/passwd"}', "a node of rubbish": 'node_output{"node":"z.99.99@99#99"}',
        "texts in texts": 'tuned_lens{"texts":{"texts":"[[[]]]"}}', "an upload": 'expected_gradients{"images":{"images":"[\\"sha256:../x\\"]"}}',
    }.items()},
    **{f"link: {name}": text for name, text in {
        "nothing": "", "a question": "?", "no model": "?prompt=a&lens=logit_lens", "no lens": "?model=stories&prompt=a", "no sample": "?model=stories&lens=logit_lens",
        "version 2": _link(v="2"), "version of text": _link(v="x" * 9999), "an upload that is none": _link(prompt=None, image="sha256:" + "a" * 64),  # type: ignore[arg-type]
        "an upload upwards": _link(prompt=None, image="sha256:../../../etc/passwd"), "a gallery upwards": _link(prompt=None, image="../gallery"),  # type: ignore[arg-type]
        "a thousand changes": _link() + "&do=skip_layer" * 1000, "sixty changes": _link() + "&do=skip_layer" * 60, "percent": "?%&%%&%zz=%", "semicolons": _link().replace("&", ";"),
        "a megabyte": "?" + "a" * 2**20, "plus": _link().replace("%20", "+"), "brackets": "?model[]=a&model[0]=b", "an ipv6 that is none": "http://[::1?model=a",
        "latin": "?model=stories&prompt=%e9%ff&lens=logit_lens", "a fragment": _link() + "#" + "x" * 9999, "prompt twice": _link() + "&prompt=other",
        "images of many": _link(prompt=None, images=json.dumps(["cat_motorcycle"] * 5000)), "pair of one": _link(prompt=None, pair='["a"]'),  # type: ignore[arg-type]
        "pair of numbers": _link(prompt=None, pair="[1,2,3,4]"), "pair of an object": _link(prompt=None, pair='{"clean":1}'), "texts of nothing": _link(prompt=None, texts="[[]]"),  # type: ignore[arg-type]
    }.items()},
}  # fmt: skip


def _spec(**parts: Any) -> str:
    whole = {
        "v": "1",
        "model": "stories",
        "prompt": "a",
        "lens": {"method": "logit_lens", "version": 1, "settings": {}},
        "interventions": [],
        **parts,
    }
    return json.dumps(whole)


SPECS = {
    "nothing": "", "null": "null", "a list": "[]", "a number": "5", "a text": '"x"', "cut off": _spec()[:-1], "two": _spec() + _spec(), "nest": "[" * 100_000,
    "objects in objects": '{"a":' * 100_000, "digits": '{"v":' + "9" * 100_000 + "}", "beyond floats": _spec(model=1e308).replace("1e+308", "1e999"),
    "lens twice": _spec()[:-1] + ',"lens":5}', "no version": _spec(v=None), "version of a list": _spec(v=[1]), "model of a list": _spec(model=["a"]),
    "model of null": _spec(model=None), "model by path": _spec(model="/etc"), "prompt of a list": _spec(prompt=["a"]), "prompt of null": _spec(prompt=None),
    "prompt of a number": _spec(prompt=5), "lens of a text": _spec(lens="logit_lens"), "lens of null": _spec(lens=None), "lens of a list": _spec(lens=[]),
    "method of a list": _spec(lens={"method": [], "settings": {}}), "method of an object": _spec(lens={"method": {}, "settings": {}}),
    "settings of a list": _spec(lens={"method": "logit_lens", "settings": []}), "settings of null": _spec(lens={"method": "logit_lens", "settings": None}),
    "settings of self": _spec(lens={"method": "logit_lens", "settings": {"self": 1, "method": 2}}), "interventions of null": _spec(interventions=None),
    "interventions of a text": _spec(interventions="abc"), "interventions of a number": _spec(interventions=5), "a thousand interventions": _spec(interventions=[{"method": "skip_layer", "settings": {}}] * 1000),
    "an intervention of a lens": _spec(interventions=[{"method": "logit_lens", "settings": {}}]), "a target of a list": _spec(lens={"method": "logit_lens", "settings": {"target": {"target": [1]}}}),
    "a target of objects": _spec(lens={"method": "logit_lens", "settings": {"target": {"target": {"a": {}}}}}), "a site of null": _spec(lens={"method": "grad_cam", "settings": {"site": {"site": None}}}),
    "a site of rubbish": _spec(lens={"method": "grad_cam", "settings": {"site": {"site": "x" * 50_000}}}), "surrogates": _spec(prompt="\ud800"), "NUL": _spec(model="a\x00"),
    "images of objects": _spec(prompt=1, images=[{}]), "contrast of a text": _spec(contrast="ab"), "texts of texts": _spec(texts='["ab"]'), "a megabyte": _spec(prompt="a" * 2**20),
    "a key of a megabyte": _spec(**{"k" * 200_000: 1}), "hundred thousand keys": _spec(**{f"k{n}": 1 for n in range(20_000)}), "a byte order mark": "\ufeff" + _spec(),
    "python": "Experiment('x')", "comment": "// x\n" + _spec(), "single quotes": _spec().replace('"', "'"), "a pickle": "cos\nsystem\n(S'touch x'\ntR.",
    "yaml": "!!python/object/apply:os.system ['touch x']", "an upload of a path": json.dumps({"v": "1", "model": "photos", "image": "sha256:/etc/passwd", "lens": {"method": "grad_cam", "settings": {}}, "interventions": []}),
}  # fmt: skip
