"""A visitor without a browser: Streamlit's protocol over a WebSocket, as its front end speaks it.

A `Visitor` opens a page, keeps the tree of elements, the values of widgets, the cached messages and the timers of
fragments as a browser tab does, acts (`set`, `click`, `fire`, `go`), and reads what is on the page (`reading`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Block_pb2 import Block
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

SUCCESS, FRAGMENT = ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY
VALUES = {
    "slider": "double_array_value", "number_input": "double_value", "text_input": "string_value",
    "text_area": "string_value", "selectbox": "string_value", "radio": "string_value", "checkbox": "bool_value",
    "multiselect": "string_array_value", "button_group": "string_array_value",
}  # fmt: skip
"""The field of a widget's state, by kind of widget."""
QUIET = 0.15
"""Seconds without a message after which a page that has ended its run and waits for nothing is settled."""


class Gone(Exception):
    """The server closed the connection, or refused it."""


@dataclass
class Node:
    """An element or a block of the page: its message, the fragment it belongs to, the run that sent it, children."""

    element: Element | None
    block: Block | None
    fragment: str
    run: str
    children: dict[int, Node] = field(default_factory=dict)


@dataclass(eq=False)
class Visitor:
    """One tab: `await visitor.open("http://127.0.0.1:8501", "heatmaps?...")`, act, `await visitor.settled()`, read."""

    socket: ClientConnection | None = None
    root: Node = field(default_factory=lambda: Node(None, None, "", ""))
    values: dict[str, WidgetState] = field(default_factory=dict)
    query: str = ""
    page: str = ""
    received: int = 0
    """Bytes that came."""
    cached: dict[str, tuple[ForwardMsg, int, str]] = field(default_factory=dict)
    runs: int = 0
    age: int = 2
    """Runs after which a cached message that was not used is dropped."""
    script: str = ""
    address: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    timers: dict[str, tuple[float, asyncio.TimerHandle]] = field(default_factory=dict)
    running: bool = False
    asked: bool = False
    """A run was asked for that has not begun."""
    finished: float = 0.0
    """When the last run ended."""
    heard: float = 0.0
    failure: str = ""
    writing: set[asyncio.Task[None]] = field(default_factory=set)
    reader: asyncio.Task[None] | None = None
    waited: bool = False
    """Whether anything had to be waited for (a fragment with a timer) since the last action."""

    # ------------------------------------------------------------------------------------------------ coming, leaving

    async def open(self, address: str, path: str) -> None:
        """Open a link in a new tab.

        Raises:
            Gone: the server does not take it.
        """
        parts = urlsplit(path)
        self.address, self.query = address, parts.query
        try:
            self.socket = await connect(
                address.replace("http", "ws", 1) + "/_stcore/stream", subprotocols=["streamlit"],  # type: ignore[list-item]
                max_size=None, compression=None, ping_interval=None, open_timeout=60,
            )  # fmt: skip
        except Exception as reason:
            raise Gone(f"{type(reason).__name__}: {reason}") from None
        self.reader = asyncio.create_task(self._read())
        self._send(name=parts.path.strip("/"))

    async def leave(self, politely: bool = True) -> None:
        """Close the tab: with the closing handshake, or as a cable that is pulled."""
        for _, timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        if self.socket is None or self.reader is None:
            return
        if politely:
            await self.socket.close()
        else:
            self.socket.transport.abort()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.wait_for(self.reader, 5)

    # ------------------------------------------------------------------------------------------------------- acting

    def set(self, kind: str, key: str, value: Any) -> None:
        """Give a widget a value, as its user does: a slider's list, an option's text, a toggle's bool."""
        node = self.find(kind, key)
        state = WidgetState(id=_own(node).id)
        _put(state, _field(kind, _own(node)), value)
        self.values[state.id] = state
        self._send(node.fragment)

    def click(self, key: str) -> None:
        """Press the button of a key, or with that label."""
        node = self.find("button", key)
        self._send(node.fragment, WidgetState(id=_own(node).id, trigger_value=True))

    def fire(self, key: str, event: str, value: Any) -> None:
        """Let a page component fire an event."""
        node = self.find("bidi_component", key)
        told = json.dumps([{"event": event, "value": value}])
        state = WidgetState(id=f"$$STREAMLIT_INTERNAL_KEY_{_own(node).id}__events", json_trigger_value=told)
        self._send(node.fragment, state)

    def go(self, name: str) -> None:
        """Click a page in the navigation."""
        self.query, self.page = "", next(key for key, each in self.pages.items() if each == name)
        self._stop_timers()
        self.values.clear()
        self.root.children.clear()
        self._send()

    def find(self, kind: str, key: str) -> Node:
        """The element of a kind with that key or label.

        Raises:
            LookupError: there is none; the text tells which there are.
        """
        seen = []
        for node in self.nodes():
            if node.element is not None and node.element.WhichOneof("type") == kind:
                own = _own(node)
                if key in (key_of(own.id), getattr(own, "label", None)):
                    return node
                seen.append(key_of(own.id))
        raise LookupError(f"no {kind} {key!r} among {seen} on {self.page or self.query}")

    # ------------------------------------------------------------------------------------------------------ the page

    async def settled(self, timeout: float = 120.0) -> float:
        """Wait until the page has ended its run and nothing on it is waited for; how long ago that was decided on.

        Returns:
            When the last run ended, by `time.monotonic`.

        Raises:
            Gone: the server closed the connection, or a script failed. TimeoutError: it did not settle.
        """
        end = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if self.failure:
                raise Gone(self.failure)
            self.waited |= bool(self.timers)
            if not (self.running or self.asked or self.timers) and now - self.heard >= QUIET:
                return self.finished
            if now > end:
                state = f"running {self.running}, asked {self.asked}, timers {len(self.timers)}"
                raise TimeoutError(f"not settled in {timeout:g} s ({state}): {self.page or self.query}")
            await asyncio.sleep(0.05 if self.running or self.asked or self.timers else QUIET / 3)

    def nodes(self) -> Iterator[Node]:
        """All nodes, in the order of the page."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            stack += [node.children[at] for at in sorted(node.children, reverse=True)]

    def reading(self) -> dict[str, str]:
        """What is on the page, by place: texts, numbers, pictures; without what differs from one visit to the next.

        Left out are times that were measured or estimated, how much was computed before, and what depends on whether
        somebody else has asked for it: cards that are made only when asked for, buttons that ask for them.
        """
        found: dict[str, str] = {}
        for node in self.nodes():
            if node.element is not None:
                found.update(_facts(node.element))
        return found

    # ------------------------------------------------------------------------------------------------ the protocol

    def _send(
        self, fragment: str = "", trigger: WidgetState | None = None, timer: bool = False, name: str = ""
    ) -> None:
        message = BackMsg()
        rerun = message.rerun_script
        rerun.query_string, rerun.page_script_hash, rerun.page_name = self.query, self.page, name
        rerun.fragment_id, rerun.is_auto_rerun = fragment, timer
        rerun.widget_states.widgets.extend(self.values.values())
        if trigger is not None:
            rerun.widget_states.widgets.append(trigger)
        rerun.cached_message_hashes.extend(self.cached)
        context = rerun.context_info
        context.timezone, context.locale, context.color_scheme, context.url = "UTC", "en-GB", "light", self.address
        if not timer:
            self.asked, self.waited = True, False
        assert self.socket is not None
        task = asyncio.ensure_future(self._write(message.SerializeToString()))
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)

    async def _write(self, data: bytes) -> None:
        assert self.socket is not None
        with contextlib.suppress(ConnectionClosed):  # the reader notes it
            await self.socket.send(data)

    async def _read(self) -> None:
        assert self.socket is not None
        try:
            async for data in self.socket:
                assert isinstance(data, bytes)
                self.received += len(data)
                self.heard = time.monotonic()
                self._take(ForwardMsg.FromString(data))
        except ConnectionClosed:
            pass
        except Exception as reason:
            self.failure = f"{type(reason).__name__}: {reason}"
        finally:
            self._stop_timers()
            closed = f"the server closed the connection ({self.socket.close_code} {self.socket.close_reason})"
            self.failure = self.failure or closed

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            place = message.metadata
            message, _, fragment = self.cached[message.ref_hash]
            self.cached[message.hash] = (message, self.runs, fragment)
            kind, path = message.WhichOneof("type"), list(place.delta_path)
        else:
            path = list(message.metadata.delta_path)
            if message.metadata.cacheable:
                self.cached.setdefault(message.hash, (message, self.runs, message.delta.fragment_id))
        if kind == "delta":
            self._place(path, message)
        elif kind == "new_session":
            run = message.metadata.run
            self.script, self.running, self.asked = run.script_run_id, True, self.asked and bool(run.fragment_ids)
            if not run.fragment_ids:
                self._stop_timers()
                self.age = message.new_session.config.max_cached_message_age
        elif kind == "script_finished":
            self._end(message)
        elif kind == "auto_rerun":
            self._begin_timer(message.auto_rerun.fragment_id, message.auto_rerun.interval)
        elif kind == "stop_auto_rerun":
            for each in message.stop_auto_rerun.fragment_ids:
                if each in self.timers:
                    self.timers.pop(each)[1].cancel()
        elif kind == "page_info_changed":
            self.query = message.page_info_changed.query_string
        elif kind == "navigation":
            self.pages = {each.page_script_hash: each.page_name for each in message.navigation.app_pages}
            self.page = message.navigation.page_script_hash
        elif kind == "session_event" and message.session_event.HasField("script_compilation_exception"):
            self.failure = "the script does not compile"

    def _place(self, path: list[int], message: ForwardMsg) -> None:
        delta, parent = message.delta, self.root
        for at in path[:-1]:
            parent = parent.children.setdefault(at, Node(None, None, "", self.script))
        if delta.WhichOneof("type") == "new_element":
            node = Node(delta.new_element, None, delta.fragment_id, self.script)
            self._hold(delta.new_element)
            parent.children[path[-1]] = node
        elif delta.WhichOneof("type") == "add_block":
            old = parent.children.get(path[-1])
            children = old.children if old is not None and old.block is not None else {}
            parent.children[path[-1]] = Node(None, delta.add_block, delta.fragment_id, self.script, children)

    def _hold(self, element: Element) -> None:
        """A widget's value: its default when it is new, the server's where the server sets it."""
        kind = element.WhichOneof("type")
        if kind == "exception" or (kind == "alert" and "fault of Actiscope" in element.alert.body):
            self.failure = f"a fault on the page: {getattr(element, kind)!s:.200}"
        if kind not in VALUES:
            return
        own = getattr(element, kind)
        if own.id not in self.values or own.set_value:
            state = WidgetState(id=own.id)
            _put(state, _field(kind, own), _shown(kind, own))
            self.values[own.id] = state

    def _end(self, message: ForwardMsg) -> None:
        self.running, self.finished = False, time.monotonic()
        if message.script_finished not in (SUCCESS, FRAGMENT):
            if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
                self.failure = "the script does not compile"
            self.running = message.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN  # another follows
            return
        run = message.metadata.run
        fragments = set(run.fragment_ids)
        if fragments or run.script_run_id == self.script:
            _prune(self.root, run.script_run_id, fragments)
            ids = {_own(node).id for node in self.nodes() if node.element and node.element.WhichOneof("type") in VALUES}
            self.values = {key: each for key, each in self.values.items() if key in ids}
        self.runs += 1
        for key, (_, since, fragment) in list(self.cached.items()):
            if self.runs - since > self.age and (not fragments or fragment in fragments):
                del self.cached[key]

    def _begin_timer(self, fragment: str, interval: float) -> None:
        if fragment in self.timers and self.timers[fragment][0] == interval:
            return
        if fragment in self.timers:
            self.timers.pop(fragment)[1].cancel()

        def ring() -> None:
            self.timers[fragment] = (interval, loop.call_later(interval, ring))
            self._send(fragment, timer=True)

        loop = asyncio.get_running_loop()
        self.timers[fragment] = (interval, loop.call_later(interval, ring))

    def _stop_timers(self) -> None:
        for _, timer in self.timers.values():
            timer.cancel()
        self.timers.clear()


def key_of(identity: str) -> str:
    """The key that the app gave a widget, "None" where it gave none."""
    return identity.split("-", 2)[-1] if identity.startswith("$$ID-") else identity


def _own(node: Node) -> Any:
    assert node.element is not None
    return getattr(node.element, node.element.WhichOneof("type") or "")


def _field(kind: str, own: Any) -> str:
    """The field of a widget's state; a slider of options has their texts."""
    return "string_array_value" if kind == "slider" and own.options else VALUES[kind]


def _shown(kind: str, own: Any) -> Any:
    if kind == "slider" and own.options:
        return list(own.raw_value) if own.set_value else [own.options[int(at)] for at in own.default]
    if kind == "slider":
        return list(own.value if own.set_value else own.default)
    if kind in ("selectbox", "radio"):
        if own.set_value:
            return own.raw_value if own.HasField("raw_value") else None
        return own.options[own.default] if own.HasField("default") and own.options else None
    if kind in ("multiselect", "button_group"):
        options = [each if isinstance(each, str) else each.content for each in own.options]
        return list(own.raw_values) if own.set_value else [options[at] for at in own.default]
    if own.set_value:
        return own.value if kind == "checkbox" or own.HasField("value") else None
    return own.default if kind == "checkbox" or own.HasField("default") else None


def _put(state: WidgetState, name: str, value: Any) -> None:
    if name.endswith("array_value"):
        getattr(state, name).data.extend(value)
        getattr(state, name).SetInParent()
    elif value is not None:
        setattr(state, name, value)


def _prune(node: Node, run: str, fragments: set[str]) -> bool:
    """Take out what the run that has ended did not send again; of a run of fragments, of these alone."""
    for at, child in list(node.children.items()):
        if not _prune(child, run, fragments):
            del node.children[at]
    if node.element is None and node.block is None:
        return True
    return node.run == run if not fragments or node.fragment in fragments else True


# ---------------------------------------------------------------------------------------------------- what is read

COST = re.compile(
    r"(no pass \(captured before\)|[0-9.,]+ forwards?, [0-9.,]+ backwards?)(, [0-9.,]+ m?s)?|about [0-9.,]+ m?s"
)
"""What a run took, and what it would take."""
CHECK = re.compile(r"[*:a-z\[]*(survives randomised weights|randomised weights|blurring its peak)")


def _facts(element: Element) -> Iterator[tuple[str, str]]:
    kind = element.WhichOneof("type") or ""
    own = getattr(element, kind)
    if kind == "bidi_component":
        data, name = json.loads(own.json or own.mixed.json or "null"), key_of(own.id)
        if name == "ladder":  # through another lens where the chosen one would take long
            name = f"ladder:{data.pop('label')}"
        if isinstance(data.get("items"), list):
            for at, item in enumerate(data.pop("items")):
                if "wait" not in item:
                    yield f"?{name}:{item.get('key', at)}", _short(json.dumps(item, sort_keys=True))
        if name.startswith("strip:"):  # its marks are left out where they would take long
            marks = [data.pop("note"), data.pop("scale"), [each.pop("score", None) for each in data["tokens"]]]
            if any(each is not None for each in marks[2]):
                yield f"?{name}:marks", _short(json.dumps(marks))
        paced = "?" if name.startswith("ladder") else ""
        yield f"{paced}component:{name}", _short(json.dumps(data, sort_keys=True))
    elif kind in ("markdown", "text", "alert", "heading"):
        for part in COST.sub("", own.body).split(" · ") if len(own.body) < 2000 else [own.body]:
            check = CHECK.match(part)
            paced = "?" if part.startswith("##### Through the layers") else ""
            yield (f"?check:{check[1]}", part) if check else (f"{paced}{kind}:{_short(part)}", "")
    elif kind == "imgs":
        yield "image:" + " ".join(each.url for each in own.imgs), ""
    elif kind == "plotly_chart":
        yield f"chart:{_short(own.spec)}", ""
    elif kind in ("dataframe", "table"):
        yield f"table:{_short(own.arrow_data.data)}", ""
    elif kind == "vega_lite_chart":
        yield f"chart:{_short(own.spec)}:{[_short(each.SerializeToString()) for each in own.datasets]}", ""
    elif kind in VALUES:
        yield f"{kind}:{key_of(own.id)}", json.dumps([own.label, _shown(kind, own)])


def _short(text: str | bytes) -> str:
    """A text as it is where it is short, else its digest."""
    raw = text.encode() if isinstance(text, str) else text
    return text if isinstance(text, str) and len(raw) <= 160 else hashlib.blake2b(raw, digest_size=12).hexdigest()


def differences(truth: dict[str, str], seen: dict[str, str]) -> list[str]:
    """In what a reading differs from the true one; what bears a "?" may be missing in either."""
    found = []
    for place in truth.keys() | seen.keys():
        if truth.get(place) != seen.get(place) and not (place[0] == "?" and not (place in truth and place in seen)):
            found.append(f"{place}: {truth.get(place, 'nothing')!r}, now {seen.get(place, 'nothing')!r}")
    return sorted(found)
