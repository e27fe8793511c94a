"""Site: the address of an activation, in TransformerLens's vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp import Unsuitable

PLAIN = ("embed", "input")
"""Kinds without a layer. `input`: pixels, or token embeddings; `embed`: those, or patches with positions."""
LAYERED = ("resid_pre", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post", "stage")
HEADED = ("q", "k", "v", "pattern", "z")
"""Kinds with a head axis: q k v z are [batch, position, head, d_head], pattern is [batch, head, query, key]."""
HEAD_AXIS = {"q": 2, "k": 2, "v": 2, "z": 2, "pattern": 1}

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre", "hook_attn_out": "attn_out", "hook_resid_mid": "resid_mid",
    "hook_mlp_out": "mlp_out", "hook_resid_post": "resid_post", "mlp.hook_post": "mlp_post",
    "attn.hook_v": "v", "attn.hook_pattern": "pattern", "attn.hook_z": "z",
    "attn.hook_q": "hook_q", "attn.hook_k": "hook_k", "attn.hook_rot_q": "hook_rot_q", "attn.hook_rot_k": "hook_rot_k",
}  # fmt: skip
ROTARY = {"hook_q": "q", "hook_k": "k", "hook_rot_q": "q", "hook_rot_k": "k"}
"""TransformerLens names that mean q or k on some models only: the model resolves or refuses them."""


@dataclass(frozen=True)
class Site:
    """The address of an activation: `Site("resid_post", 3)`, `Site("z", 3, head=5)`, `Site("stage", 2)`.

    `Site("module", path="encoder.stages.3")` is the output of a module and `":in"` at the end of the path its first
    input. `str(site)` ("z.3.5") and `Site.parse` are inverse.
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "module":
            good = bool(self.path) and self.layer is None and self.head is None
        elif self.kind in PLAIN:
            good = self.layer is None and self.head is None and self.path is None
        else:
            known = self.kind in LAYERED or self.kind in HEADED or self.kind in ROTARY
            good = known and self.path is None and _number(self.layer)
            good = good and (self.head is None or (self.kind in (*HEADED, *ROTARY) and _number(self.head)))
        if not good:
            path = None if self.path is None else self.path[:40]
            raise Unsuitable(f"There is no site {str(self.kind)[:40]!r} with {self.layer=}, {self.head=}, {path=}.")

    def __str__(self) -> str:
        if self.kind == "module":
            return f"module:{self.path}"
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)

    def __lt__(self, other: Site) -> bool:
        mine, theirs = ((s.kind, s.layer or 0, -1 if s.head is None else s.head, s.path or "") for s in (self, other))
        return mine < theirs

    @staticmethod
    def parse(text: str | Site) -> Site:
        """Read "resid_post.3", "z.3.5", "stage.2", "module:encoder.stages.3:in" or a TransformerLens name.

        Raises:
            Unsuitable: the text names no site.
        """
        if isinstance(text, Site):
            return text
        if text.startswith("module:"):
            return Site("module", path=text.removeprefix("module:"))
        if text == "hook_embed":
            return Site("embed")
        if (match := re.fullmatch(r"blocks\.([0-9]{1,4})\.(.+)", text)) and (kind := _TRANSFORMER_LENS.get(match[2])):
            return Site(kind, int(match[1]))
        if match := re.fullmatch(r"([a-z_]+)(?:\.([0-9]{1,4}))?(?:\.([0-9]{1,5}))?", text):
            kind, layer, head = match.groups()
            return Site(kind, None if layer is None else int(layer), None if head is None else int(head))
        raise Unsuitable(f"{text[:40]!r} names no site; write for example resid_post.3, z.3.5, stage.2 or module:PATH.")


@dataclass(frozen=True)
class Node:
    """A part of a model as a node of a graph: what lies at a site, at one token or at all, whole or one channel of it.

    `str(node)` and `Node.parse` are inverse: "z.1.2@5" (head 2 of layer 1 at token 5), "mlp_out.0" (at all tokens),
    "mlp_post.3@5#17" (neuron 17), "logits@9" (no site: what the model says after token 9).
    """

    site: Site | None
    position: int | None = None
    channel: int | None = None

    @property
    def kind(self) -> str:
        return self.site.kind if self.site else "logits"

    @property
    def layer(self) -> int | None:
        return self.site.layer if self.site else None

    @property
    def head(self) -> int | None:
        return self.site.head if self.site else None

    def __str__(self) -> str:
        place = "" if self.position is None else f"@{self.position}"
        return f"{self.site or 'logits'}{place}" + ("" if self.channel is None else f"#{self.channel}")

    @staticmethod
    def parse(text: str) -> Node:
        """Read what `str(node)` wrote.

        Raises:
            Unsuitable: the text names no node.
        """
        match = re.fullmatch(r"([^@#]+)(?:@([0-9]{1,6}))?(?:#([0-9]{1,7}))?", text)
        if not match:
            raise Unsuitable(f"{text[:40]!r} names no part of a model; write for example z.1.2@5 or mlp_out.0@3.")
        site, position, channel = match.groups()
        numbers = (None if each is None else int(each) for each in (position, channel))
        return Node(None if site == "logits" else Site.parse(site), *numbers)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
