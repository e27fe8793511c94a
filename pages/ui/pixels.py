"""What the Pixels page has of its own: references, Captum beside ours, and the experiments of the DeepLIFT paper."""

from __future__ import annotations

import dataclasses

import streamlit as st

from interp import Unsuitable
from interp.experiment import Call, Experiment
from interp.figures import data_url, fitted, scale_of
from interp.methods import METHODS
from interp.methods.attribution import _pixels
from interp.methods.attribution.deeplift_captum import operations
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image
from pages.ui import components, jobs, show
from pages.ui.bench import bench, change

NAMES = {
    "blur": "blurred",
    "zeros": "zeros",
    "black": "black",
    "white": "white",
    "image mean": "its mean colour",
    "uniform": "random colours",
}


@st.cache_data(max_entries=64, show_spinner=False)
def _thumbnail(_model: VisionModel, _sample: Image, name: str, key: str) -> str:
    import PIL.Image

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
    with st.expander("Does it add up? DeepLIFT here and in Captum, operation by operation", icon=":material/balance:"):
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
            st.warning(str(problem), icon=":material/info:")
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
                    f"residual {100 * result.residual.value:.2g} %",
                )  # fmt: skip
                st.caption(result.residual.meaning.replace("|", "\\|"))
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


def experiments() -> None:
    """The DeepLIFT paper's own experiments."""
