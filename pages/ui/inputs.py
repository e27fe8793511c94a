"""Choosing what to look at: the gallery, or one's own photo."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp import Unsuitable, settings, zoo
from interp.figures import data_url, fitted
from interp.samples import Image, gallery
from pages.ui import components
from pages.ui.bench import bench, change, turn_to_kind, use_model


@st.cache_data(max_entries=256, show_spinner=False)
def thumbnail(_image: Image, sha256: str, side: int = 200) -> str:
    """A small picture of an image as a data URL, cropped to a square."""
    picture = _image.picture
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    return data_url(fitted(picture.crop((left, top, left + edge, top + edge)), side))


def gallery_cards(key: str, names: list[str] | None = None, on: Any = None, least: int = 104) -> None:
    """The sample images; a click lays one on the bench, with the model that it is for."""
    shown = {name: entry for name, entry in gallery().items() if names is None or name in names}
    current = bench().sample
    items = []
    for name, entry in shown.items():
        image = Image.gallery(name)
        items.append(
            {
                "key": name,
                "title": entry["title"],
                "image": thumbnail(image, image.sha256),
                "alt": entry["alt"],
                "selected": image == current,
                "help": f"{entry['licence']}, {entry['author']}",
            }
        )
    components.cards(key, items, on or pick, "Sample images", least=least)


def pick(name: str) -> None:
    """Lay a gallery image on the bench, with its model."""
    if not isinstance(bench().sample, Image):
        turn_to_kind(Image)
    wanted = gallery()[name].get("model") or bench().model
    same_labels = wanted == "photos" and bench().model not in zoo.shelf()
    if wanted != bench().model and not (wanted == "photos" and bench().model == "photos-vit") and not same_labels:
        use_model(wanted)
    # a class chosen for the last picture says nothing about this one
    settings = {"target": None} if "target" in bench().lens.settings else {}
    change(sample=Image.gallery(name), lens=bench().lens.but(**settings), second="", chips=())


def uploader(key: str, label: str = "Your photo") -> None:
    """Drop a photo; it is decoded here and stays in this visit unless a link to it is asked for."""

    def arrived() -> None:
        file = st.session_state[key]
        if file is None:
            return
        try:
            image = Image.open(file.getvalue(), file.name)
        except Unsuitable as problem:
            st.session_state["problem"] = str(problem)
            return
        if not isinstance(bench().sample, Image):
            turn_to_kind(Image)
        settings = {"target": None} if "target" in bench().lens.settings else {}
        if bench().model.startswith("scenes"):
            use_model("photos")
        change(sample=image, lens=bench().lens.but(**settings), second="", chips=())

    limits = settings.SETTINGS
    st.file_uploader(
        label,
        type=["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"],
        key=key,
        on_change=arrived,
        help=f"Up to {limits.upload_bytes / 2**20:.3g} MB and {limits.pixels / 1e6:.3g} megapixels. Turned upright, "
        "scaled to at most 1536 px, and not kept unless you ask for a link to it.",
    )
