"""The open feature: its label, dial, what follows, logits, contexts, a box to try texts in, features near it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import streamlit as st

from interp import Unsuitable, evidence, feature_index, sae
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.model import LanguageModel, Model
from interp.results import FeaturePage, Table
from interp.samples import Image, Prompt, PromptPair
from pages.ui import components, jobs, labels, prompts, share, show
from pages.ui.bench import Chip, bench, change, take_along
from pages.ui.controls import sae_name
from pages.ui.prompts import visible

DIALS = ("ablate_feature", "scale_feature", "clamp_feature")
FEW = {"top": 5}


def title(model: Model, page: FeaturePage) -> str:
    """One's own label of a feature; or what it fires on, and what it promotes."""
    own = labels.of(page.sae).get(page.feature)
    if own:
        return own
    fires, promotes = names(model, page.sae).get(page.feature, ""), [_flat(each).strip() for each in page.promoted[:3]]
    return " → ".join(filter(None, (fires and f"“{fires}”", ", ".join(filter(None, promotes)))))


def names(model: Model, name: str) -> dict[int, str]:
    """For each feature of an SAE with an index of texts, the tokens that it fires on most."""
    index = feature_index.find(model, sae.load(name)) if isinstance(model, LanguageModel) else None
    return {} if index is None else _names(index.key, index, model)


@st.cache_data(max_entries=32, show_spinner=False)
def _names(key: str, _index: feature_index.Index, _model: LanguageModel) -> dict[int, str]:
    ids, at, values = _index.context_ids, _index.context_at, _index.context_values
    feature, context = (at >= 0).nonzero()
    column = at[feature, context]
    sums: dict[int, dict[int, float]] = {}
    for each, token, value in zip(
        feature.tolist(),
        ids[feature, context, column].tolist(),
        values[feature, context, column].tolist(),
        strict=True,
    ):
        own = sums.setdefault(each, {})
        own[token] = own.get(token, 0.0) + value
    found = {}
    for each, own in sums.items():
        best = sorted(own, key=lambda token: -own[token])[:2]
        kept = [token for token in best if own[token] >= 0.15 * sum(own.values())] or best[:1]
        texts = dict.fromkeys(_flat(_model.token_text(token)).strip() or "␣" for token in kept)
        found[each] = ", ".join(texts)
    return found


def often(density: float, of: str) -> str:
    """How often a feature fires, in words; `of` tokens or patches."""
    if density != density:
        return ""
    return f"on {percent(density)} of {of}" if density else "never fired"


def percent(share: float) -> str:
    """A share with two digits, and no exponent where there are more before the point."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def places(model: Model) -> str:
    """What a feature fires on."""
    return "tokens" if isinstance(model, LanguageModel) else "patches"


def turns(call: Call, lens: Call) -> bool:
    """Whether an intervention is the dial of the feature whose page a lens is."""
    settings, of = call.settings, lens.settings
    return call.method in DIALS and settings["features"] == (of["feature"],) and settings["sae"] == of["sae"]


def panel(model: Model, whole: Experiment, experiment: Experiment, page: FeaturePage) -> None:
    """All of it: the feature without its own dial, and what the whole experiment comes to."""
    _head(model, page)
    left, right = st.columns(2, gap="medium")
    with left:
        _dial(page)
    with right:
        _outcome(model, whole)
    if isinstance(model, LanguageModel):
        prompts.continued([whole], beside=True)

    def acted(value: dict[str, Any]) -> None:
        open_feature(int(value["open"]), page.sae)

    components.feature("feature:logits", _logits(model, page), acted)
    if isinstance(model, LanguageModel):
        _try(experiment, page)
    components.feature("feature:contexts", _contexts(page), acted)
    _foot(model, experiment, page)


def shown(model: Model, experiment: Experiment, page: FeaturePage) -> None:
    """What is known of it, and no more."""
    st.markdown(f"##### #{page.feature} · {show.plain(title(model, page) or 'no tokens')}")
    components.feature("feature:logits", _logits(model, page), None)
    components.feature("feature:contexts", _contexts(page), None)
    show.cost(experiment, page)


def open_feature(number: int, of: str = "") -> None:
    """Open a feature; a list that it was found in stays."""
    call, view = bench().lens, bench().view
    if call.method == "feature_page":
        change(
            lens=call.but(feature=number, **({"sae": of, "index": ""} if of not in ("", call.settings["sae"]) else {}))
        )
    else:
        change(view=dataclasses.replace(view, feature=number, of=of))


def like(number: int, of: str) -> None:
    """List the features that are most like one, which stays open."""
    view = dataclasses.replace(bench().view, feature=number, of="")
    change(lens=Call("feature_neighbours", sae=of, feature=number), view=view)


# --------------------------------------------------------------------------------------------------- what it is called


def _head(model: Model, page: FeaturePage) -> None:
    st.markdown(f"##### #{page.feature} · {show.plain(title(model, page) or 'no tokens')}")
    fires = (
        f"fires on {percent(page.density)} of {page.counted:,} {places(model)} · maximum {page.maximum:.3g} · "
        f"mean where it fires {page.mean:.3g}"
        if page.density
        else f"never fired on {page.counted:,} {places(model)}"
    )
    st.caption(show.plain(f"{sae_name(page.sae)} of {model.name} · {fires}"))
    label, note = labels.own().get(page.sae, {}).get(page.feature, ("", ""))
    st.session_state["own-label"], st.session_state["own-note"] = label, note

    def written() -> None:
        labels.put(page.sae, page.feature, st.session_state["own-label"], st.session_state["own-note"])

    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        st.text_input("Your label", key="own-label", on_change=written, max_chars=labels.LONGEST[0], width=220,
                      placeholder="name it")  # fmt: skip
        st.text_input("Your note", key="own-note", on_change=written, max_chars=labels.LONGEST[1],
                      placeholder="what you think it does")  # fmt: skip

    if labels.own() and not labels.packed():
        st.caption("Your labels are too many for a link; download them under Your own, Your labels, and send the file.")


# ------------------------------------------------------------------------------------------------------------- the dial


def _chip(page: FeaturePage) -> int | None:
    """Which chip on the bar is this feature's dial."""
    lens = Call("feature_page", sae=page.sae, feature=page.feature)
    return next((at for at, chip in enumerate(bench().chips) if turns(chip.call, lens)), None)


def _dial(page: FeaturePage) -> None:
    """Ablate, amplify or clamp it: an intervention on the bar."""
    at = _chip(page)
    call = bench().chips[at].call if at is not None else None
    clamped = call is not None and call.method == "clamp_feature"
    settings = call.settings if call is not None else {}
    st.session_state["dial-kind"] = (
        "clamp" if clamped or (st.session_state.get("dial-clamps") and call is None) else "scale"
    )
    kinds = {"scale": "Times", "clamp": "Clamp"}

    def kind() -> None:
        st.session_state["dial-clamps"] = st.session_state["dial-kind"] == "clamp"
        _turn(page, None)

    st.segmented_control(
        "Its dial", list(kinds), key="dial-kind", format_func=kinds.get, required=True, on_change=kind,
        help="Times: each activation multiplied. Clamp: set at every token, in units of its maximum in the index.",
    )  # fmt: skip
    if st.session_state["dial-kind"] == "clamp":
        st.session_state["dial"] = float(settings.get("value", 0.0)) if clamped else 0.0
        st.slider("Activation (times its maximum)", 0.0, 3.0, key="dial", step=0.1,
                  on_change=lambda: _turn(page, "clamp_feature"))  # fmt: skip
        st.caption("On the bar it holds at every token." if clamped else "Move it to clamp the feature at every token.")
    else:
        factor = 0.0 if call is not None and call.method == "ablate_feature" else settings.get("factor", 1.0)
        st.session_state["dial"] = min(float(factor), 5.0)
        st.slider("0 ablates, 1 leaves it, 5 amplifies", 0.0, 5.0, key="dial", step=0.25, format="%.2g ×",
                  on_change=lambda: _turn(page, "scale_feature"))  # fmt: skip
        silent = not page.here.any()
        st.caption(
            "It does not fire here: only a clamp changes anything." if silent else "The SAE's error stays as it is."
        )
    if call is not None:
        st.button("Leave it as it is", icon=":material/close:", type="tertiary", key="dial-off",
                  on_click=lambda: _turn(page, None))  # fmt: skip


def _turn(page: FeaturePage, method: str | None) -> None:
    """Put the dial's position on the bar, in the place of its last one."""
    chips, at = list(bench().chips), _chip(page)
    value = float(st.session_state["dial"]) if method else 0.0
    new: Chip | None = None
    if method == "clamp_feature":
        new = Chip(Call(method, sae=page.sae, features=(page.feature,), value=value, unit="maximum"))
    elif method == "scale_feature" and value != 1:
        settings = {"sae": page.sae, "features": (page.feature,)}
        new = Chip(Call("ablate_feature", **settings) if value == 0 else Call(method, **settings, factor=value))
    place = len(chips) if at is None else at
    chips[place : place + (at is not None)] = [new] if new else []
    change(chips=tuple(chips))


def _outcome(model: Model, experiment: Experiment) -> None:
    """What the model says, before and after the changes on the bar."""
    lens = Call("next_tokens", top=6) if isinstance(model, LanguageModel) else Call("class_probabilities")
    try:
        after = jobs.run(dataclasses.replace(experiment, lens=lens))
        plain = (
            jobs.run(dataclasses.replace(experiment.before(), lens=_all(lens))) if experiment.interventions else None
        )
    except Unsuitable as problem:
        st.warning(show.plain(str(problem)), icon=":material/info:")
        return
    assert isinstance(after, Table)
    order = np.argsort(-after.values[:, 0], kind="stable")[:6]
    earlier = dict(zip(plain.rows, plain.values[:, 0], strict=True)) if isinstance(plain, Table) else None
    if isinstance(plain, Table):
        guess = plain.rows[int(plain.values[:, 0].argmax())]
        order = np.array(
            [
                *order,
                *([after.rows.index(guess)] if guess in after.rows and after.rows.index(guess) not in order else []),
            ]
        )
    items = [
        {
            "label": visible(after.rows[at]) if isinstance(model, LanguageModel) else after.rows[at],
            "p": float(after.values[at, 0]),
            "before": None if earlier is None else float(earlier.get(after.rows[at], 0.0)),
            "first": place == 0,
            "second": False,
        }
        for place, at in enumerate(order)
    ]
    st.markdown("**What comes next**" if isinstance(model, LanguageModel) else "**What it sees**")
    hint = "thick: after your changes, thin: before" if earlier is not None else "Turn the dial to see this change."
    components.guesses("feature:next", items, None, hint)


def _all(lens: Call) -> Call:
    return lens.but(top=100) if "top" in lens.settings else lens


# ------------------------------------------------------------------------------------------------------ what is known


def _logits(model: Model, page: FeaturePage) -> dict[str, Any]:
    text = visible if isinstance(model, LanguageModel) else str
    what = "logits" if isinstance(model, LanguageModel) else "classes"
    sides = [
        {
            "title": name,
            "items": [[text(each), float(value)] for each, value in zip(words, values, strict=True)][:8],
            "empty": f"It does not write where {what} are read.",
        }
        for name, words, values in (
            ("Promotes (logit per unit)", page.promoted, page.gains),
            ("Suppresses", page.suppressed, page.losses),
        )
    ]
    data: dict[str, Any] = {"key": f"{page.sae} {page.feature}", "maximum": page.maximum or 1.0, "logits": sides}
    there = np.flatnonzero(page.counts)
    if len(there):
        part = slice(int(there[0]), int(there[-1]) + 1)
        counts, edges = page.counts[part], page.edges[int(there[0]) : int(there[-1]) + 2]
        most = int(counts.argmax())
        data["histogram"] = {
            "counts": counts.tolist(), "edges": edges.tolist(), "title": "How strongly it fires",
            "axis": f"activation (log), {places(model)} (log)", "of": places(model),
            "low": f"{edges[0]:.3g}", "high": f"{edges[-1]:.3g}",
            "alt": f"Most of its activations lie between {edges[most]:.2g} and {edges[most + 1]:.2g}; "
                   f"the largest is {page.maximum:.3g}.",
        }  # fmt: skip
    return data


def _contexts(page: FeaturePage) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for at, (tokens, name) in enumerate(zip(page.contexts, page.groups, strict=True)):
        row: dict[str, Any] = {"at": int(page.marks[at])}
        if len(page.images) == len(page.contexts):
            grid = page.grids[at]
            row |= {
                "image": f"data:image/jpeg;base64,{page.images[at]}", "grid": grid.round(4).tolist(),
                "value": float(grid.flat[row["at"]]), "alt": where(grid),
            }  # fmt: skip
        else:
            values = np.nan_to_num(page.activations[at][: len(tokens)])
            row |= {
                "tokens": [_flat(each) for each in tokens], "values": [float(f"{each:.4g}") for each in values],
                "value": float(values[row["at"]]) if len(values) else 0.0,
            }  # fmt: skip
        groups.setdefault(name, []).append(row)
    few = 8 if page.images else 2
    return {
        "key": f"{page.sae} {page.feature}",
        "maximum": page.maximum or 1.0,
        "groups": [
            {"name": "Where it fires most" if name == "top" else f"Activations {name}", "rows": rows,
             "few": FEW.get(name, few) if not page.images else few}
            for name, rows in groups.items()
        ],
    }  # fmt: skip


def _flat(token: str) -> str:
    """A token within running text, with what can't be seen made visible."""
    return "".join(each if each == " " else visible(each) for each in token)


def where(grid: np.ndarray) -> str:
    """Where on a photo it fires most, in words."""
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    return f"It fires most at row {row + 1}, column {column + 1} of {grid.shape[0]} by {grid.shape[1]}."


def near(model: Model, experiment: Experiment, page: FeaturePage) -> None:
    """The features near it, by name; a click opens one."""
    numbers = list(dict.fromkeys([*page.neighbours[:10].tolist(), *page.together[:8].tolist()]))
    called: dict[int, str] = {}
    if numbers:
        call = Call("feature_map", sae=page.sae, index=experiment.lens.settings["index"])
        found = jobs.run(dataclasses.replace(experiment, lens=call))
        assert isinstance(found, Table)
        mine, fires = labels.of(page.sae), names(model, page.sae)
        called = {each: mine.get(each) or fires.get(each) or _flat(found.rows[each]).strip() for each in numbers}
    links = [
        {
            "title": name,
            "items": [
                {"feature": int(each), "label": called[int(each)], "value": f"{value:.2f}".replace("0.", ".", 1)}
                for each, value in zip(features[:most], values[:most], strict=True)
            ],
        }
        for name, features, values, most in (
            ("Writes alike (cosine)", page.neighbours, page.cosines, 10),
            (f"Fires on the same {places(model)} (Jaccard)", page.together, page.overlaps, 8),
        )
    ]
    data = {"key": f"{page.sae} {page.feature}", "maximum": 1.0, "links": links}
    with st.container(key="near"):
        components.feature("feature:near", data, lambda value: open_feature(int(value["open"]), page.sae))


# ----------------------------------------------------------------------------------------------------------- trying it


@st.fragment
def _try(experiment: Experiment, page: FeaturePage) -> None:
    """A text of one's own, coloured as one types."""
    text = st.session_state.get("tried", "")
    data: dict[str, Any] = {
        "text": text, "tokens": None, "maximum": page.maximum or 1.0, "label": "Try it on a text",
        "placeholder": "Try it on a text: its tokens are coloured as you type", "message": "",
    }  # fmt: skip
    if text.strip():
        try:
            found = jobs.run(dataclasses.replace(experiment, sample=Prompt(text)))
            assert isinstance(found, FeaturePage)
            data["tokens"] = [[_flat(each), float(v)] for each, v in zip(found.tokens, found.here, strict=True)]
            strongest = float(found.here.max(initial=0))
            data["message"] = (
                f"Strongest {strongest:.3g}, {strongest / page.maximum:.0%} of its maximum."
                if strongest and page.maximum
                else "It does not fire on this."
            )
        except Unsuitable as problem:
            data["message"] = str(problem)
    components.try_text(
        "feature:try", data, lambda value: st.session_state.update(tried=str(value.get("text", ""))[:2000])
    )


# ----------------------------------------------------------------------------------------------------- taking it along


def _foot(model: Model, experiment: Experiment, page: FeaturePage) -> None:
    found = sae.load(page.sae)
    left = _left_out(experiment.digest, experiment, page.sae)
    here = "this prompt" if isinstance(model, LanguageModel) else "this photo"
    st.caption(show.plain(" · ".join([*facts(found), f"leaves out {percent(left)} of the variance on {here}"])))
    show.cost(experiment, page)
    with st.container(horizontal=True, gap="small"):
        st.button("Like this one", icon=":material/hub:", type="tertiary", on_click=like,
                  args=(page.feature, page.sae))  # fmt: skip
        if found.neuronpedia:
            st.link_button("On Neuronpedia", f"{found.neuronpedia}/{page.feature}", type="tertiary",
                           icon=":material/open_in_new:")  # fmt: skip
        with st.popover("What am I seeing?", icon=":material/help:", type="tertiary"):
            share.explain(METHODS["feature_page"])
        with st.popover("Download", icon=":material/download:", type="tertiary"):
            share.numbers(experiment, page, f"feature-{page.feature}")
    with st.container(horizontal=True, gap="small"):
        if isinstance(model, LanguageModel):
            places = (("Prompts", "prompts", Prompt, "logit_lens"),
                      ("Circuits", "circuits", PromptPair, "information_flow_routes"))  # fmt: skip
        else:
            places = (("Heatmaps", "heatmaps", Image, "grad_cam"),)  # type: ignore[assignment]
        for name, place, kind, lens in places:
            if st.button(f"Open in {name}", icon=":material/arrow_forward:", type="tertiary", key=f"to:{place}"):
                take_along(kind, lens)
                st.switch_page(f"pages/{place}.py")


@st.cache_data(max_entries=500, show_spinner=False)
def _left_out(key: str, _experiment: Experiment, name: str) -> float:
    return evidence.left_out(_experiment, name)


def facts(found: sae.SAE) -> list[str]:
    """What an SAE's own measures say of it."""
    own = found.metadata.get("actiscope") or {}
    out = [f"{'transcoder' if found.is_transcoder else 'SAE'}, {found.d_sae:,} features"]
    if isinstance(own.get("explained_variance"), float):
        out.append(f"explains {100 * own['explained_variance']:.3g} % of the variance")
    if isinstance(own.get("l0"), float):
        where = "patch" if found.site.kind == "stage" else "token"
        out.append(f"{own['l0']:.3g} active at a {where}")
    if isinstance(own.get("ce_with_sae"), float) and isinstance(own.get("ce"), float):
        out.append(f"costs {own['ce_with_sae'] - own['ce']:.2g} nat in its place")
    if isinstance(own.get("dead"), float):
        out.append(f"{100 * own['dead']:.2g} % dead")
    return out
