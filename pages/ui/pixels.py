"""What the Pixels page has of its own: references, Captum beside ours, and the experiments of the DeepLIFT paper."""

from __future__ import annotations

import dataclasses

import PIL.Image
import streamlit as st

from interp import Unsuitable
from interp.experiment import Call, Experiment
from interp.figures import data_url, fitted, logo, scale_of
from interp.methods import METHODS
from interp.methods.attribution import _pixels
from interp.methods.attribution.deeplift_captum import operations
from interp.model import VisionModel
from interp.paper import attributions as methods
from interp.paper import digits, minimum, motifs
from interp.results import Heatmap
from interp.samples import Image
from pages.ui import components, jobs, show
from pages.ui.bench import bench, change

NAMES = {
    "blur": "blurred",
    "zeros": "zeros",
    "black": "black",
    "white": "white",
    "image mean": "its mean",
    "uniform": "random",
}


@st.cache_data(max_entries=64, show_spinner=False)
def _thumbnail(_model: VisionModel, _sample: Image, name: str, key: str) -> str:
    with jobs.turn():
        found = _pixels.references(_model, _model.inputs(_sample), name)  # type: ignore[arg-type]
    return data_url(fitted(PIL.Image.fromarray(_model.picture(found[0])), 120))


def references(model: VisionModel) -> None:
    """What the image is compared with, as thumbnails: a click takes another."""
    lens, sample = bench().lens, bench().sample
    if "reference" not in lens.settings or not isinstance(sample, Image):
        return
    several = lens.settings.get("images")
    items = []
    for name, title in NAMES.items():
        item = {
            "key": name,
            "title": title,
            "image": _thumbnail(model, sample, name, f"{model.digest}{sample.sha256}"),
            "alt": f"The reference: {title}",
            "selected": not several and name == lens.settings["reference"],
        }
        known = jobs.known(dataclasses.replace(bench().experiment, lens=_with(lens, name)))
        if known is not None and known.residual:
            item["note"] = f"residual {known.residual.value:.1g}"
        items.append(item)
    st.markdown("##### Compared with")
    components.cards(
        "references", items, lambda name: change(lens=_with(bench().lens, name)), "References", least=76, row=True
    )
    if several:
        names = ", ".join(str(image) for image in several.images)
        st.caption(f"Now compared with {names}; a click above takes one of those instead.")
    else:
        st.caption("Another reference asks another question. Any images can be taken instead: see the lens in the bar.")


def _with(lens: Call, reference: str) -> Call:
    more = {"images": None} if "images" in lens.settings else {}
    return lens.but(reference=reference, **more)


WHY = {
    "input_x_gradient": "Gradient x input promises no completeness: it has the slope at the image, not the way there.",
    "integrated_gradients": "More steps bring it down: between two steps the gradient jumps where a ReLU switches.",
    "expected_gradients": "It is a random average: the residual falls with the root of the number of samples.",
    "lrp": "Biases and epsilon take their share of the logit and keep it.",
    "deeplift_captum": "Captum has no rule for some of this model's operations; the list below names them.",
    "deeplift": "Nothing but rounding, unless an intervention changes image and reference in different ways.",
}


def beside_captum(model: VisionModel) -> None:
    """The operations of the model, and Captum's DeepLift on the same input."""
    sample, now = bench().sample, bench().experiment
    assert isinstance(sample, Image)
    title = "Does it add up? DeepLIFT here and in Captum, operation by operation"
    with st.expander(title, icon=":material/balance:", key="captum", on_change="rerun") as drawer:
        if not drawer.open:  # made when asked for, and not before
            return
        if text := WHY.get(now.lens.method):
            st.write(f"**{METHODS[now.lens.method].name}.** {text}")
        shared = {key: now.lens.settings[key] for key in ("target", "reference") if key in now.lens.settings}
        if shared.get("target") is not None and shared["target"].name is None:
            shared.pop("target")
        try:
            pair = [
                jobs.run(Experiment(now.model, now.sample, Call(key, **shared), now.interventions))
                for key in ("deeplift", "deeplift_captum")
            ]
        except Unsuitable as problem:
            st.warning(show.plain(str(problem)), icon=":material/info:")
            return
        ours, theirs = pair
        assert isinstance(ours, Heatmap) and isinstance(theirs, Heatmap)
        scale = scale_of(show.view(ours), show.view(theirs))
        picture = show.picture_of(now)
        for column, result, title in zip(st.columns(2), (ours, theirs), ("Here", "In Captum"), strict=True):
            assert result.residual
            with column:
                show.hero(
                    f"captum:{title}", show.view(result), picture, now.digest if now.interventions else sample.sha256,
                    dataclasses.replace(bench().look, signed=True), scale, f"{title} · {result.target}",
                    f"residual {_percent(result.residual.value)}",
                )  # fmt: skip
                st.caption(result.residual.meaning.replace("|", "\\|"))
        with jobs.turn():
            table = operations(model, sample)
        st.markdown("**The nonlinear operations of this model**, in the order they first run:")
        st.dataframe(
            [
                {
                    "operation": name,
                    "runs": int(runs),
                    "with a rule in Captum": int(served),
                    "rule here": RULES.get(name, "Rescale, elementwise (the paper)"),
                }
                for name, (runs, served) in zip(table.rows, table.values, strict=True)
            ],
            hide_index=True,
            width="stretch",
        )
        if theirs.note:
            st.write(theirs.note)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1g} %" if share >= 1e-4 else "below 0.01 %"


RULES = {
    "product": "each factor weighed with the mean of the other (extension)",
    "softmax": "exp, sum and log by Rescale (extension)",
    "log_softmax": "exp, sum and log by Rescale (extension)",
    "layer_norm": "square, root and product (extension)",
    "rms_norm": "square, root and product (extension)",
    "group_norm": "square, root and product (extension)",
    "norm": "square and root by Rescale (extension)",
    "normalize": "square, root and product (extension)",
    "div": "reciprocal by Rescale, and a product (extension)",
    "glu": "sigmoid by Rescale, and a product (extension)",
    "scaled_dot_product_attention": "product, softmax, product (extension)",
    **{f"max_pool{n}d": "the winner takes the difference (extension)" for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": "the winner takes the difference (extension)" for n in (1, 2, 3)},
}


# ------------------------------------------------------------------------------------- the paper's own experiments


def experiments() -> None:
    """The DeepLIFT paper's own experiments, run here."""
    st.markdown("##### The experiments of the DeepLIFT paper, run here")
    which = st.segmented_control(
        "Experiment",
        ["The smaller of two numbers", "Motifs in DNA", "One digit into another"],
        default="The smaller of two numbers",
        required=True,
        key="experiment",
        label_visibility="collapsed",
    )
    if which == "Motifs in DNA":
        _motifs()
    elif which == "One digit into another":
        _digits()
    else:
        _minimum()


def _bars(values: dict[str, float], unit: str, best: str = "") -> None:
    import plotly.graph_objects as go

    names = list(values)
    colours = ["#0072b2" if name.startswith("DeepLIFT") else "#9a9a96" for name in names]
    chart = go.Figure(go.Bar(y=names, x=[values[name] for name in names], orientation="h", marker_color=colours))
    chart.update_traces(texttemplate="%{x:.2f}", hovertemplate="%{y}: %{x:.3f}<extra></extra>")
    chart.update_yaxes(autorange="reversed")
    chart.update_layout(height=40 + 30 * len(names), margin={"l": 0, "r": 10, "t": 6, "b": 30}, xaxis_title=unit)
    st.plotly_chart(chart, key=f"bars:{unit}:{best}", config={"displayModeBar": False})


def _minimum() -> None:
    import plotly.graph_objects as go

    left, right = st.columns([5, 7], gap="medium")
    with left:
        st.write(
            "A network that takes the smaller of two numbers, min(x₁, x₂) = x₁ − relu(x₁ − x₂), compared with (0, 0). "
            "Both numbers hold the answer down. Which method says so?"
        )
        one = st.slider("x₁", 0.0, 5.0, 3.0, 0.5, key="min:1")
        two = st.slider("x₂", 0.0, 5.0, 2.0, 0.5, key="min:2")
        found = minimum.shares(one, two)
        rise, fall = minimum.moves(one, two)
        st.write(
            f"Into the ReLU go the parts +{one:g} and −{two:g}. One multiplier for their sum, as in Rescale, lets the "
            "larger swallow the smaller. RevealCancel adds them in both orders: "
            f"the first raises the ReLU by {rise:g}, the second lowers it by {fall:g}, so x₁ gets "
            f"{one:g} − {rise:g} = {one - rise:g} and x₂ gets {fall:g}."
        )
    with right:
        chart = go.Figure(
            [
                go.Bar(name=name, x=list(found), y=[pair[at] for pair in found.values()], marker_color=colour)
                for at, (name, colour) in enumerate((("x₁", "#0072b2"), ("x₂", "#e69f00")))
            ]
        )
        chart.update_traces(texttemplate="%{y:.2g}")
        chart.update_layout(
            barmode="group", height=320, margin={"l": 0, "r": 0, "t": 24, "b": 0},
            yaxis_title=f"share of min = {min(one, two):g}", legend={"orientation": "h", "y": 1.12},
        )  # fmt: skip
        st.plotly_chart(chart, key="min:chart", config={"displayModeBar": False})


@st.cache_data(show_spinner="Scoring 400 sequences by six methods ...")
def _roc() -> dict[str, dict[str, float]]:
    with jobs.turn():
        return motifs.roc()


def _motifs() -> None:
    case = st.selectbox("Case", list(motifs.CASES), index=2, key="motif:case")
    output, counts, names, sign = motifs.CASES[case]
    number = st.slider("Sequence", 0, 49, 0, key="motif:number")
    st.write(
        f"A small network has learned to say **{output}** of simulated DNA. In these sequences "
        + (" and ".join(names))
        + f" {'speaks' if len(names) == 1 else 'speak'} {'for' if sign > 0 else 'against'} that. "
        "Each letter is as tall as what it adds to the logit; letters that speak against hang below the line."
    )
    last = motifs.simulate(number + 1, 1, counts).one(number)
    for method in ("DeepLIFT, genomics default", "Gradient x input", "Guided Backprop x input"):
        values = motifs.scores(method, last, output)[0]
        strongest = float(abs(values).max()) or 1.0
        st.caption(f"{method} (tallest letter: {strongest:.2g} logits)")
        st.image(logo(last.text, values, strongest, last.spans), width="stretch")
    st.markdown("**How well each method finds the letters of the motifs**, 100 sequences (area under the ROC)")
    _bars(_roc()[case], "area under the ROC", case)


@st.cache_data(show_spinner="Erasing ...")
def _changes() -> dict[str, dict[str, float]]:
    with jobs.turn():
        return digits.changes()


def _digits() -> None:
    pairs = {f"{this} to {other}": (this, other) for this, other in digits.PAIRS}
    pair = st.segmented_control("Turn", list(pairs), default="8 to 3", required=True, key="digit:pair")
    this, other = pairs[pair]
    chosen = digits.held_out_of(this)
    number = st.slider("Which one", 0, len(chosen) - 1, 0, key="digit:number")
    one = chosen[number : number + 1]
    st.write(
        f"Each method names the pixels that speak most for {this} and least for {other}; at most 20 % are erased. "
        "Below each picture: log-odds of the one against the other."
    )
    columns = st.columns(1 + len(methods.METHODS))
    pictures = {"The digit": one} | {
        name: digits.erased(one, digits.differences(name, one, this, other)) for name in methods.METHODS
    }
    for column, (name, picture) in zip(columns, pictures.items(), strict=True):
        with column:
            whole = PIL.Image.fromarray(digits.picture(picture[0])).resize((160, 160), PIL.Image.Resampling.NEAREST)
            odds = float(digits.log_odds(picture, this, other)[0])
            st.image(data_url(whole, "PNG"), caption=f"{name}: {odds:+.1f}", width="stretch")
    st.markdown(f"**How far the log-odds move from {this} to {other}**, mean over the held-out digits")
    _bars(_changes()[pair], "change of the log-odds", pair)
