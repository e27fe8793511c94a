"""Models of the hub on their way here: what each is before it is downloaded, its bytes as they come, and Cancel."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field

import streamlit as st

from interp import Unsuitable, hub, zoo
from interp.progress import Cancelled, Progress, watch
from pages.ui import show

SILENT = 6.0
"""Seconds after which a page that no longer asks for a download counts as gone."""

_log = logging.getLogger("actiscope")
_lock = threading.Lock()
_coming: dict[str, Download] = {}


@dataclass
class Download:
    """One model that is fetched and read. It goes on as long as some page asks for it."""

    name: str
    wanted: dict[str, float] = field(default_factory=dict)
    cancel: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = None
    error: str = ""
    ended: bool = False

    def report(self, progress: Progress) -> None:
        self.progress = progress
        if all(time.monotonic() - last > SILENT for last in list(self.wanted.values())):
            self.cancel.set()


def begin(name: str) -> Download:
    """The download of a model, begun if need be, and told that this visitor wants it."""
    with _lock:
        for gone in [key for key, each in _coming.items() if each.ended and key != name]:
            del _coming[gone]
        one = _coming.get(name)
        if one is None or one.ended or one.cancel.is_set():
            one = _coming[name] = Download(name)
            one.wanted[_visitor()] = time.monotonic()
            threading.Thread(target=Context().run, args=(_work, one), daemon=True, name="model").start()
        one.wanted[_visitor()] = time.monotonic()
        return one


def coming(name: str) -> Download | None:
    """The download of a model that this visitor began or joined."""
    with _lock:
        one = _coming.get(name)
        return one if one and _visitor() in one.wanted and not one.cancel.is_set() else None


def leave(one: Download) -> None:
    """This visitor no longer wants it; it ends unless another does."""
    with _lock:
        one.wanted.pop(_visitor(), None)
        if not one.wanted:
            one.cancel.set()


def _work(one: Download) -> None:
    try:
        with watch(one.report, one.cancel):
            zoo.load(one.name)
    except Cancelled:
        one.cancel.set()
    except Unsuitable as problem:
        one.error = str(problem)
    except Exception:
        _log.exception("A model could not be loaded")
        one.error = "This failed through a fault of Actiscope's; the log has the details."
    finally:
        one.ended = True


def _visitor() -> str:
    context = st.runtime.scriptrunner.get_script_run_ctx()
    return context.session_id if context else "nobody"


# -------------------------------------------------------------------------------------------------------- what is shown


def needed(name: str) -> bool:
    """Whether a model has to be downloaded first; if so, its card is shown.

    Raises:
        Unsuitable: it can't be had here; the text says why.
    """
    if zoo.here(name) or _looked(name).here:
        return False
    st.info("This is about a model of Hugging Face that is not on this machine yet.", icon=":material/info:")
    offer(name, lambda _: st.rerun())
    return True


def offer(name: str, then: Callable[[zoo.Card], object], words: str = "Open it") -> None:
    """A model's card with the button that downloads it, or how far that is; `then` is called when it is here.

    Raises:
        Unsuitable: it can't be had here; the text says why.
    """
    card = _looked(name)
    one = coming(card.name)
    if one is not None and one.ended and not one.error:
        leave(one)
        st.session_state.pop("looked", None)
        then(card)
        return
    with st.container(border=True, key="offer"):
        repository, _, commit = card.name.partition("@")
        st.markdown(f"##### {show.plain(repository)}")
        weights = sum(size for each, size in card.files.items() if each.endswith(".safetensors"))
        st.markdown(f"{card.task.capitalize()}. **{hub.said(card.bytes)}**, {len(card.files)} files.")
        facts = [f"`{card.family}`", show.plain(card.architecture), f"weights {hub.said(weights)}",
                 f"licence {show.plain(card.licence)}" if card.licence else "no licence given",
                 f"[commit {commit[:8]}](https://huggingface.co/{repository}/tree/{commit})"]  # fmt: skip
        st.caption(" · ".join(facts))
        if one is not None:
            _bar(one)
        elif card.here:
            if st.button(words, icon=":material/visibility:", type="primary", key="offer-open"):
                begin(card.name)
                st.rerun()
        elif st.button(
            f"Download {hub.said(card.bytes)}", icon=":material/download:", type="primary", key="offer-download",
            help="It is kept on the disk for the next time. You can stop it; it goes on later where it was.",
        ):  # fmt: skip
            begin(card.name)
            st.rerun()


def _bar(one: Download) -> None:
    @st.fragment(run_every=0.5)
    def bar() -> None:
        if one.error:
            st.warning(show.plain(one.error), icon=":material/info:")
            if st.button("Try again", key="offer-again", icon=":material/refresh:"):
                begin(one.name)
                st.rerun()
            return
        if one.ended or one.cancel.is_set():
            st.rerun()
        one.wanted[_visitor()] = time.monotonic()
        st.progress(*_said(one.progress))
        if st.button("Cancel", key="offer-cancel", icon=":material/close:"):
            leave(one)
            st.rerun()

    bar()


def _said(progress: Progress | None) -> tuple[float, str]:
    if progress is None or not progress.label.startswith("Fetching"):
        return 0.0, "Asking for it"
    if progress.done >= progress.total:
        return 1.0, "Reading it"
    left = "" if progress.left is None else f", about {progress.left:.0f} s left"
    return progress.done / progress.total, f"{hub.said(progress.done)} of {hub.said(progress.total)}{left}"


def _looked(name: str) -> zoo.Card:
    """The card, looked up once in a visit until another is."""
    kept = st.session_state.get("looked")
    if kept and name in (kept[0], kept[1].name):
        return kept[1]
    with st.spinner(f"Asking Hugging Face for {show.plain(name)}"):
        card = zoo.look(name)
    st.session_state["looked"] = (name, card)
    return card
