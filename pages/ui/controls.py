"""Controls made from a method's signature: the type of a setting chooses its widget."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import streamlit as st

from interp import Unsuitable, directions, feature_index, sae, transport
from interp.evidence import strongest_channels
from interp.experiment import Call
from interp.method import Control
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.samples import Contrast, Image, ImageSet, Prompt, Target, TextSet, gallery
from interp.sites import Site


def controls(
    call: Call, model: Any, sample: Any, prefix: str, on: Callable[[Call], None], skip: tuple[str, ...] = ()
) -> None:
    """Show the settings of `call`; `on(new_call)` is called when one of them is changed."""
    for control in METHODS[call.method].controls:
        if control.name not in skip:
            _control(control, call, model, sample, f"{prefix}:{call.method}:{control.name}", on)


def _control(control: Control, call: Call, model: Any, sample: Any, key: str, on: Callable[[Call], None]) -> None:
    value, label = call.settings[control.name], control.name.replace("_", " ").capitalize()

    def changed(read: Callable[[Any], Any] = lambda shown: shown) -> Callable[[], None]:
        def apply() -> None:
            try:
                on(call.but(**{control.name: read(st.session_state[key])}))
            except Unsuitable as problem:
                st.session_state["problem"] = str(problem)

        return apply

    def show(shown: Any) -> str:
        st.session_state[key] = shown
        return key

    if control.kind in ("sae", "direction") or control.name in ("index", "operators"):
        _stored(value, label, control, call, model, show, changed)
    elif control.name == "feature":
        st.number_input(label, 0, 10**7, key=show(value), step=1, help=control.help, on_change=changed())
    elif control.kind == "toggle":
        st.toggle(label, key=show(value), help=control.help, on_change=changed())
    elif control.kind == "choice":
        st.segmented_control(
            label, control.choices, key=show(value), help=control.help, on_change=changed(), required=True
        )
    elif control.kind == "slider" and control.unset and control.name.endswith("layer"):
        layers = [None, *range(model.layers)]
        st.selectbox(
            label, layers if value in layers else [*layers, value], key=show(value), help=control.help,
            format_func=lambda each: control.unset if each is None else f"layer {each}", on_change=changed(),
        )  # fmt: skip
    elif control.kind == "slider" and control.unset:
        assert control.range
        st.number_input(
            label, control.range.low, control.range.high, value=None, key=show(value), placeholder=control.unset,
            step=1 if control.whole else None, help=control.help, on_change=changed(),
        )  # fmt: skip
    elif control.kind == "slider":
        assert control.range
        number = int if control.whole else float
        low, high = number(control.range.low), number(control.range.high)
        if control.name in ("layer", "count"):
            high = number(max(model.layers - (control.name == "layer"), 1))
            value = min(value, high)
        step = number(control.range.step or (1 if control.whole else (high - low) / 100))
        st.slider(label, low, high, step=step, key=show(number(value)), help=control.help, on_change=changed())
    elif control.kind == "number":
        st.number_input(
            label, step=1 if control.whole else None, key=show(value), help=control.help, on_change=changed()
        )
    elif control.kind == "site":
        language = isinstance(model, LanguageModel)
        last = None if control.unset or language else model.last_spatial
        served = heads_and_sites(model) if language else model.spatial_sites()
        sites = [None, *[site for site in served if site != last]]
        shown = None if value == last else value
        if shown not in sites:
            sites.append(shown)
        unset = control.unset or f"{site_name(model, model.last_spatial)} (last)"
        name = lambda site: unset if site is None else site_name(model, site)  # noqa: E731
        st.selectbox(label, sites, key=show(shown), format_func=name, help=control.help, on_change=changed())
    elif control.kind == "target" and isinstance(model, LanguageModel):
        shown = model.token_text(value.name) if isinstance(value.name, int) else value.name or ""
        st.text_input(
            label,
            key=show(shown),
            help=control.help + " A token, as ' Mary' with the space before it.",
            placeholder="the model's first guess" if control.name == "target" else "none",
            on_change=changed(lambda text: Target(text or None)),
        )
    elif control.kind == "target":
        names = [None, *model.labels]
        shown = value.name if value.name is None or isinstance(value.name, str) else model.labels[value.name]
        st.selectbox(
            "Class",
            names,
            key=show(shown if shown in names else None),
            help=control.help,
            on_change=changed(Target),
            format_func=lambda each: "the model's first guess" if each is None else each,
        )
    elif control.kind == "sample" and _is_prompt(control):
        st.text_input(
            label,
            key=show(value.text if value else ""),
            help=control.help,
            placeholder=control.unset or "none",
            on_change=changed(lambda text: Prompt(text) if text.strip() else None),
        )
    elif control.kind == "sample" and "Contrast" in str(control.hint):
        _sides(value, label, control, key, changed)
    elif control.kind == "sample" and control.hint == tuple[str, ...]:
        st.text_area(
            label, key=show("\n\n".join(value)), help=control.help + " An empty line stands between two.",
            placeholder="none", on_change=changed(lambda text: tuple(filter(None, map(str.strip, text.split("\n\n"))))),
        )  # fmt: skip
    elif control.kind == "sample" and isinstance(model, LanguageModel):
        st.text_area(
            label,
            key=show("\n".join(value.texts) if value else ""),
            help=control.help + " One on each line.",
            placeholder=control.unset or "none",
            on_change=changed(lambda text: TextSet(tuple(filter(None, text.splitlines()))) if text.strip() else None),
        )
    elif control.kind == "sample":
        _images(value, label, control, key, changed)
    elif control.kind == "region":
        _region(value, label, control, call, key, on)
    elif control.kind == "heads":
        st.text_input(
            label,
            key=show(", ".join(f"{layer}.{head}" for layer, head in value)),
            help=control.help + " Write 2.1, 3.0: layer, then head.",
            on_change=changed(heads),
        )
    elif control.kind == "sites":
        st.session_state[key] = list(value)
        offered = list(dict.fromkeys([*value, *(each for each in heads_and_sites(model))]))
        st.multiselect(
            label, offered, key=key, format_func=lambda site: site_name(model, site), help=control.help,
            on_change=changed(tuple), placeholder="none",
        )  # fmt: skip
    elif control.kind == "positions":
        st.text_input(
            label,
            key=show(", ".join(map(str, value))),
            help=control.help + " Write 3, 17, 40-52.",
            placeholder="all",
            on_change=changed(numbers),
        )
    elif control.kind == "features" or (control.kind == "channels" and isinstance(model, LanguageModel)):
        st.text_input(
            label,
            key=show(", ".join(map(str, value))),
            help=control.help + " Write 3, 17, 40-52.",
            on_change=changed(numbers),
        )
    elif control.kind == "channels":
        _channels(value, call, model, sample, control, key, on)
    else:
        st.text_input(label, key=show(str(value)), help=control.help, on_change=changed())


def _stored(
    value: str, label: str, control: Control, call: Call, model: Any, show: Callable[[Any], str],
    changed: Callable[..., Any],
) -> None:  # fmt: skip
    """An SAE or a direction of this model, an index of that SAE, or transport operators, by their names."""
    names = {"": {"sae": "the model's own", "direction": "the model's first"}.get(control.kind, "the one there is")}
    if control.kind == "sae":
        names |= {each: sae_name(each) for each in sae.available(model)}
    elif control.kind == "direction":
        if control.name != "direction":
            names[""] = "none"
        names |= {each.key: each.name for each in directions.available(model)}
    elif control.name == "operators":
        names |= {key: f"{name}, {count:,} tokens" for key, name, count in transport.listed(model)}
    else:
        with contextlib.suppress(Unsuitable):
            found = sae.load(call.settings["sae"] or sae.first(model))
            names |= {key: f"{name}, {count:,} tokens" for key, name, count in feature_index.listed(model, found)}
    names.setdefault(value, sae_name(value))
    st.selectbox(
        "SAE" if control.kind == "sae" else label, list(names), key=show(value), format_func=names.get,
        help=control.help, on_change=changed(),
    )  # fmt: skip


def sae_name(name: str) -> str:
    """An SAE's name as it is shown: without its model, a hash cut short."""
    return name.partition("/")[2] or name[:14] if not name.startswith(("hub:", "release:")) else name.partition(":")[2]


def _is_prompt(control: Control) -> bool:
    return "Prompt" in str(control.hint) and "TextSet" not in str(control.hint)


def _sides(value: Contrast | None, label: str, control: Control, key: str, changed: Callable[..., Any]) -> None:
    """Texts that show something, and texts that do not."""
    for side, title in (("positive", f"{label}: show it"), ("negative", f"{label}: do not")):
        st.session_state[f"{key}:{side}"] = lines(getattr(value, side)) if value else ""

        def read(_: Any) -> Contrast | None:
            both = tuple(texts(st.session_state.get(f"{key}:{each}", "")) for each in ("positive", "negative"))
            return Contrast(*both) if any(both) else None

        def apply(side: str = side) -> None:
            st.session_state[key] = st.session_state[f"{key}:{side}"]
            changed(read)()

        hint = control.help + " One on each line; \\n is a line break within one."
        st.text_area(title, key=f"{key}:{side}", help=hint, placeholder=control.unset or "none", on_change=apply)


def lines(examples: tuple[str, ...]) -> str:
    """Examples, one on each line; a line break within one is written \\n."""
    return "\n".join(each.replace("\n", "\\n") for each in examples)


def texts(text: str) -> tuple[str, ...]:
    """Read what `lines` wrote."""
    return tuple(each.replace("\\n", "\n") for each in text.splitlines() if each.strip())


def _images(value: ImageSet | None, label: str, control: Control, key: str, changed: Callable[..., Any]) -> None:
    """Images of the gallery, and those of this visit, as a set."""
    seen = {image: str(image) for image in (value.images if value else ())}
    for past in st.session_state.get("history", []):
        if isinstance(past.sample, Image):
            seen.setdefault(past.sample, str(past.sample))
    for name, entry in gallery().items():
        seen.setdefault(Image.gallery(name), entry["title"])
    st.session_state[key] = list(value.images) if value else []
    st.multiselect(
        label,
        list(seen),
        key=key,
        format_func=lambda image: seen[image],
        help=control.help,
        placeholder=control.unset or "none",
        max_selections=8,
        on_change=changed(lambda shown: ImageSet(tuple(shown)) if shown else None),
    )


def _region(
    value: tuple[float, ...], label: str, control: Control, call: Call, key: str, on: Callable[[Call], None]
) -> None:
    def apply() -> None:
        (left, right), (top, bottom) = st.session_state[key + ":x"], st.session_state[key + ":y"]
        on(call.but(**{control.name: (left / 100, top / 100, right / 100, bottom / 100)}))

    left, top, right, bottom = (round(100 * each) for each in value)
    st.session_state[key + ":x"], st.session_state[key + ":y"] = (left, right), (top, bottom)
    st.slider(f"{label}, left to right (%)", 0, 100, key=key + ":x", help=control.help, on_change=apply)
    st.slider(
        f"{label}, top to bottom (%)", 0, 100, key=key + ":y", help="Or draw the box on the photo.", on_change=apply
    )


def _channels(
    value: tuple[int, ...], call: Call, model: Any, sample: Any, control: Control, key: str, on: Callable[[Call], None]
) -> None:
    def apply() -> None:
        try:
            on(call.but(**{control.name: numbers(st.session_state[key])}))
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)

    def strongest(n: int) -> None:
        on(call.but(**{control.name: strongest_channels(model, sample, Target(), call.settings.get("site"), n)}))

    st.session_state[key] = ", ".join(map(str, value))
    st.text_input("Channels", key=key, help=control.help + " Write 3, 17, 40-52.", on_change=apply)
    st.caption("Or those that speak most for the first guess:")
    with st.container(horizontal=True):
        for n in (1, 5, 20, 100):
            st.button(str(n), key=f"{key}:top{n}", on_click=strongest, args=(n,), help=f"The {n} strongest channels.")


def heads(text: str) -> tuple[tuple[int, int], ...]:
    """Read "2.1, 3.0": layer and head of each.

    Raises:
        Unsuitable: something else is written there.
    """
    found = []
    for part in filter(None, re.split(r"[,\s]+", text.strip())):
        match = re.fullmatch(r"[lL]?(\d{1,4})[.hH](\d{1,5})", part)
        if not match:
            raise Unsuitable(f"Heads are a layer and a head, as in 2.1, 3.0; {part[:20]!r} is none.")
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def heads_and_sites(model: LanguageModel) -> list[Site]:
    """The sites one may want to scale: what enters and leaves layers, what they add, and each head."""
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found = [site for site in model.sites() if site.kind in kinds]
    if model.refuses(Site("z", 0)):
        return found
    return found + [Site("z", layer, head) for layer in range(model.layers) for head in range(model.parts.heads)]


def numbers(text: str) -> tuple[int, ...]:
    """Read "3, 17, 40-52".

    Raises:
        Unsuitable: something else is written there.
    """
    found: list[int] = []
    for part in re.split(r"[,\s]+", text.strip()):
        if match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part):
            low, high = int(match[1]), int(match[2] or match[1])
            if high - low > 10_000:
                raise Unsuitable("That range is too long; at most 10,000 channels.")
            found += range(low, high + 1)
        elif part:
            raise Unsuitable(f"Channels are numbers, as in 3, 17, 40-52; {part[:20]!r} is none.")
    return tuple(found)


NAMES = {"attn_out": "attention of", "mlp_out": "MLP of", "resid_post": "out of"}


def site_name(model: Any, site: Site) -> str:
    """A site in words: "stage 3 of 4", "block 5 of 8"."""
    if site.kind == "stage":
        return f"stage {site.layer}"
    if site.kind == "resid_pre":
        return f"into block {site.layer}"
    if site.kind == "z":
        return f"head {site.head} of layer {site.layer}"
    if site.kind in NAMES:
        return f"{NAMES[site.kind]} layer {site.layer}"
    return str(site)
