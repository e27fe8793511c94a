"""Links, short links, previews, embedded views and files: what they hold is what was shown, and nothing else runs."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import PIL.Image
import pytest
import streamlit as st
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from interp import Missing, Unsuitable, settings, snapshot, storage
from interp.experiment import Call, Experiment
from interp.figures import Look
from interp.results import Curve, FeatureList, Graph, Heatmap, Result, Table, Text, TokenGrid, TokenScores
from interp.samples import Image, Prompt
from pages.server import cards, previews
from pages.ui import bench as benches
from pages.ui import export
from pages.ui.bench import Bench, Chip, View, first, first_pair, first_prompt, first_steering
from tests.pages.test_pages import ROOT, opened

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><!--"
PAGES = ("heatmaps", "pixels", "prompts", "circuits", "features", "transport", "steering")
HOST = "https://actiscope.example"


def shown(app: AppTest) -> str:
    return " ".join(each.value for kind in (app.caption, app.warning, app.markdown) for each in kind)


def link_open(app: AppTest) -> AppTest:
    app.session_state["popover:link"] = True
    return app.run()


def shared(app: AppTest) -> str:
    """Make a short link of what a page shows; its id."""
    link_open(app)
    app.button(key="make-short").click().run()
    assert not app.exception and "short-problem" not in app.session_state
    return str(app.session_state["short"][1])


def live(app: AppTest) -> str:
    return next(each.value for each in app.code if "model=" in each.value)


# ---------------------------------------------------------------------------------------------------------- live links


def test_a_link_holds_all_of_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(
        0.5, "z.1.2@3", ("z.0.1@4",), (("a group", ("z.1.2@3",)),), "atp_star", "difference", 7,
        "stories/resid_post.1", "density", "embed>3", "size", 4, 1, 9, 2, True, (0.1, 0.2, 0.3, 1.0),
    )  # fmt: skip
    assert all(getattr(view, each.name) != getattr(View(), each.name) for each in dataclasses.fields(View))
    look = Look(True, 0.4, 0.25, "cividis", "patches")
    push, skip = Call("steer", direction="stories/sentiment"), Call("skip_layer", layer=1)
    chips = (Chip(skip, False), Chip(push), Chip(push.but(strength=-1.0), False))
    prompt = first_prompt()
    whole = Bench(prompt.model, prompt.sample, prompt.lens, chips, "another prompt", look, 3, 2, view)
    monkeypatch.setattr(benches, "bench", lambda: whole)
    assert benches.viewed(whole.experiment, benches.query()) == whole
    plain = Bench(prompt.model, prompt.sample, prompt.lens)
    monkeypatch.setattr(benches, "bench", lambda: plain)
    assert benches.query() == plain.experiment.to_query()


@pytest.mark.parametrize("region", ["0.3,0,0.1,1", "0,0,1", "0,0,1,nan", "0,0,1,1e3", "-1,0,1,1", "0,0,1,2"])
def test_what_is_no_region_is_left_out(region: str) -> None:
    experiment = first().experiment
    assert benches.viewed(experiment, {"region": [region]}).view.region == ()
    assert benches.viewed(experiment, {"off": ["x", "0:", "0:nothing{}", "-1:steer", "0:grad_cam"]}).chips == ()


def test_a_fragment_that_begins_the_page_again_brings_no_old_url_back() -> None:
    app = opened("prompts", v="1", model="stories", prompt="One prompt", lens="next_tokens")
    mine = dataclasses.replace(app.session_state["bench"], sample=Prompt("Another prompt"))
    app.session_state["bench"], app.session_state["url"] = mine, {"as": ["written a moment ago"]}
    app.session_state["again"] = True
    assert app.run().session_state["bench"] == mine
    # without that word an unknown URL is a link that arrives
    app.session_state["url"] = {}
    for key, value in {"prompt": "A third prompt", "lens": "next_tokens"}.items():
        app.query_params[key] = value
    assert app.run().session_state["bench"].sample == Prompt("A third prompt")


def test_a_fingerprint_tells_other_numbers_from_rounding() -> None:
    values = np.random.default_rng(0).normal(size=(7, 7))
    result = Heatmap(values, (224, 224))
    mark = result.fingerprint()
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", mark)
    assert dataclasses.replace(result, values=values * (1 + 1e-5)).matches(mark)
    for other in (values + 0.05, values * 1.05, values[::-1].copy(), values[:, :6], values.T.copy()):
        assert not dataclasses.replace(result, values=other).matches(mark)
    # places of an index matter as much as values, and what is no fingerprint matches nothing
    ranks = [FeatureList(np.array(order), np.ones(3)) for order in ([3, 1, 2], [1, 3, 2])]
    assert ranks[0].matches(ranks[0].fingerprint()) and not ranks[1].matches(ranks[0].fingerprint())
    gone = dataclasses.replace(result, values=np.where(values > 0, values, np.nan))
    assert gone.matches(gone.fingerprint())
    assert not any(result.matches(text) for text in ("", "%", "AAAA", mark[:-2], "é" * 22, mark * 2))


def test_how_far_numbers_are_apart_is_a_share_of_their_scale() -> None:
    table = Table(("a", "b"), ("x",), np.array([[10.0], [2.0]]))
    assert table.apart(table.arrays()) == 0
    assert table.apart({"values": np.array([[8.0], [2.0]])}) == pytest.approx(0.25)
    assert table.apart({"values": np.zeros((3, 1))}) == table.apart({}) == float("inf")
    assert table.apart({"values": np.array([[np.nan], [2.0]])}) == float("inf")


def test_a_live_link_says_whether_its_numbers_are_the_same_and_keeps_nothing() -> None:
    before = list(storage.shared().entries())
    page = link_open(opened("steering"))
    url = live(page)
    assert list(storage.shared().entries()) == before
    query = {key: value for key, _, value in (each.partition("=") for each in url.partition("?")[2].split("&"))}
    query = {key: re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), value.replace("+", " "))
             for key, value in query.items()}  # fmt: skip
    there = opened("steering", **query)
    assert "Reproduced" in shown(there)
    other = query["check"][:-4] + ("AAAA" if query["check"][-4:] != "AAAA" else "BBBB")
    for check, said in ((other, True), ("", False), ("x", False), ("0123abcd." + "A" * 22, False)):
        for key, value in {**query, "check": check}.items():
            there.query_params[key] = value
        text = shown(there.run())
        assert ("Differs" in text) == said and "Reproduced" not in text


# --------------------------------------------------------------------------------------------------------- short links


def test_a_short_link_opens_the_view_elsewhere_and_reproduces_it() -> None:
    here = opened("steering")
    id = shared(here)
    kept = snapshot.read(id)
    assert kept.experiment.lens.method == "side_effects" and kept.kind == "Table" and kept.weights
    assert f"/s/{id}" in " ".join(each.value for each in here.code)
    there = opened("snapshot", id=id)
    assert not there.exception and not there.warning
    assert there.session_state["bench"] == here.session_state["bench"] == first_steering()
    assert shown(there).count("Reproduced") == 1 and there.query_params["model"] == "stories"


def test_numbers_that_differ_are_told_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    id = shared(opened("prompts"))
    stored = snapshot.numbers(snapshot.read(id))
    assert stored is not None
    stored["values"] = stored["values"] + 0.1 * np.nanmax(np.abs(stored["values"]))
    monkeypatch.setattr(snapshot, "numbers", lambda found: stored)
    text = shown(opened("snapshot", id=id))
    assert "Differs" in text and re.search(r"up to 9\\\.1 %", text) and "weights" not in text
    read = snapshot.read
    monkeypatch.setattr(snapshot, "read", lambda id: dataclasses.replace(read(id), weights="0" * 64))
    assert "other weights" in shown(opened("snapshot", id=id))


def test_a_link_that_cannot_be_opened_gets_a_sentence_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = opened("prompts", v="1", model="stories", prompt="My own words here", lens="logit_lens")
    mine = own.session_state["bench"]
    for id in ("", "a" * 20, "../../etc/passwd", EVIL, "A" * 20):
        own.switch_page("pages/snapshot.py")
        own.query_params["id"] = id
        own.run()
        assert not own.exception and len(own.warning) == 1 and own.get("page_link")
        assert own.session_state["bench"] == mine

    def away(id: str) -> Any:
        raise storage.Away("slow")

    monkeypatch.setattr(snapshot, "read", away)
    assert len(own.run().warning) == 1
    monkeypatch.undo()
    # and one that can be opened leaves the own bench where undo finds it
    own.query_params["id"] = shared(opened("prompts"))
    own.switch_page("pages/snapshot.py").run()
    assert own.session_state["bench"] == first_prompt() and own.session_state["undo"] == [mine]


def test_a_store_that_fails_is_said_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    app = link_open(opened("prompts"))
    mine = app.session_state["bench"]

    def away(*_: Any, **__: Any) -> str:
        raise storage.Away("full")

    monkeypatch.setattr(snapshot, "keep", away)
    app.button(key="make-short").click().run()
    assert not app.exception and [each.value for each in app.warning] and "short" not in app.session_state
    assert app.session_state["bench"] == mine and "model=" in live(app)


def test_a_photo_is_kept_with_consent_alone() -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    photo = Image.of(pixels, "mine.png")
    app = opened("heatmaps")
    app.session_state["bench"] = dataclasses.replace(first(), sample=photo, second="")
    link_open(app)
    assert "asked for the same file" in shown(app)
    before = list(storage.shared().entries())
    app.button(key="make-short").click().run()
    assert "tick the box" in shown(app) and list(storage.shared().entries()) == before
    with pytest.raises(Missing):
        Image.refer(photo.reference)
    app.checkbox(key="keep-photo").check().run()
    id = shared(app)
    there = opened("snapshot", id=id)
    assert there.session_state["bench"].sample == photo and "Reproduced" in shown(there)


# -------------------------------------------------------------------------------------------- what others see of a link


def client() -> TestClient:
    return TestClient(Starlette(routes=previews.ROUTES), base_url=HOST, raise_server_exceptions=True)


def kept(title: str, preview: bytes | None = None) -> str:
    experiment = Experiment("stories", Prompt(f"The capital of France is {title[:20]}"), Call("next_tokens"))
    return snapshot.keep(experiment, experiment.run(), {}, title, preview)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_of_a_short_link_says_what_it_is_and_goes_on() -> None:
    id = kept(EVIL)
    answer = client().get(f"/s/{id}")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    tags = Tags(answer.text).found
    assert {name for name, _ in tags} == {"html", "head", "meta", "title", "style", "body", "h1", "p", "a"}
    metas = {
        each.get("property") or each.get("name"): each["content"]
        for name, each in tags
        if name == "meta" and "content" in each
    }
    assert metas["og:title"] == metas["twitter:title"] == EVIL
    assert metas["og:image"] == metas["twitter:image"] == f"{HOST}/s/{id}.png" and metas["og:url"] == f"{HOST}/s/{id}"
    assert metas["twitter:card"] == "summary_large_image"
    assert metas[None] == f"0; url=../snapshot?id={id}"  # the refresh
    assert [each["href"] for name, each in tags if name == "a"] == [f"../snapshot?id={id}"]


@pytest.mark.parametrize("id", ["a" * 20, "A" * 20, "..", "%2e%2e%2fx", "x" * 500, "1" * 20, "a" * 19 + "%00"])
def test_what_is_no_link_is_not_found(id: str) -> None:
    for end in ("", ".png"):
        answer = client().get(f"/s/{id}{end}")
        assert answer.status_code == 404 and len(answer.text) < 200
        assert "no-store" in answer.headers.get("cache-control", "no-store")


def test_the_proxies_are_believed_only_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    id = kept("a title")
    said = {"x-forwarded-proto": "http", "x-forwarded-host": "evil.example, inner.example"}
    assert f'"{HOST}/s/{id}.png"' in client().get(f"/s/{id}", headers=said).text
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, proxies=1))
    assert f'"http://inner.example/s/{id}.png"' in client().get(f"/s/{id}", headers=said).text
    hostile = {"x-forwarded-host": '"><script>alert(1)</script>', "x-forwarded-proto": "javascript"}
    assert "<script" not in client().get(f"/s/{id}", headers=hostile).text


def test_a_short_link_lies_below_the_base_path() -> None:
    assert [each.path for each in previews.ROUTES] == ["/s/{id:str}.png", "/s/{id:str}"]
    code = (
        "from streamlit import config; config.set_option('server.baseUrlPath', '/a/lab/'); "
        "from pages.server import previews; print(*[each.path for each in previews.ROUTES])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["/a/lab/s/{id:str}.png", "/a/lab/s/{id:str}"]


def test_the_picture_is_the_kept_one_or_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = cards.draw("its own", [])
    answer = client().get(f"/s/{kept('with a picture', own)}.png")
    assert answer.content == own and answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    drawn, draw = [], cards.draw
    monkeypatch.setattr(cards, "draw", lambda *args: drawn.append(args) or draw(*args))
    id = kept("without a picture")
    pictures = {client().get(f"/s/{id}.png").content for _ in range(3)}
    assert len(pictures) == len(drawn) == 1 and PIL.Image.open(io.BytesIO(pictures.pop())).size == (1200, 630)


def test_a_store_that_is_away_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(id: str) -> Any:
        raise storage.Away("slow")

    monkeypatch.setattr(snapshot, "title", away)
    for end in ("", ".png"):
        assert client().get(f"/s/{'b' * 20}{end}").status_code == 503


PROMPTED = {
    "logit_lens": TokenGrid, "token_attribution": TokenScores, "next_tokens": Table, "feature_lookup": FeatureList,
}  # fmt: skip


def ink(png: bytes, box: tuple[int, int, int, int]) -> float:
    """The share of a part of a picture that is not paper."""
    part = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB").crop(box)).astype(int)
    return float((np.abs(part - part[0, 0]).sum(-1) > 12).mean())


@pytest.mark.parametrize("lens", [*PROMPTED, "feature_page", "edge_attribution_patching", "side_effects"])
def test_a_result_has_a_picture_of_its_own(lens: str) -> None:
    start = (
        first_pair()
        if lens == "edge_attribution_patching"
        else first_steering()
        if lens == "side_effects"
        else first_prompt()
    )
    experiment = dataclasses.replace(start.experiment, lens=Call(lens))
    result = experiment.run()
    assert isinstance(result, PROMPTED.get(lens, Result))
    picture = cards.draw("A title", ["what it is"], result)
    bare = cards.draw("A title", ["what it is"], Text("nothing to draw"))
    figure = (40, 190, 1160, 538)
    assert ink(bare, figure) == 0 < 0.01 < ink(picture, figure)
    assert PIL.Image.open(io.BytesIO(picture)).size == (1200, 630)


def test_a_heatmap_lies_over_its_photo_and_texts_stand_side_by_side() -> None:
    experiment = first().experiment
    result = experiment.run()
    assert isinstance(result, Heatmap) and isinstance(experiment.sample, Image)
    with_map, flat = (
        cards.draw("A title", [], each, experiment.sample.picture, Look())
        for each in (result, dataclasses.replace(result, values=0 * result.values))
    )
    assert with_map != flat and ink(flat, (700, 40, 1150, 540)) > 0.3
    texts = cards.draw("A title", [], Text(""), texts=[("Plain", "a good film " * 5), ("Steered", "a bad film " * 5)])
    assert ink(texts, (40, 190, 580, 538)) > 0.02 < ink(texts, (640, 190, 1160, 538))


@pytest.mark.parametrize("text", ["", EVIL, "\x00\u202e\ud83d\ude00", "long " * 900, "x" * 3000, "日本語 العربية"])
def test_whatever_was_typed_can_be_drawn(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    scores = TokenScores((text, "b"), np.array([1.0, np.nan]), text)
    graph = Graph(("z.0.0@0", "logits"), np.array([1.0, 2.0]), np.array([[0, 1]]), np.array([1.0]), tokens=(text,))
    table = Table((text,), (text, text), np.full((1, 2), np.nan))
    curve = Curve(np.array([0.0, 0.0]), np.array([[np.nan, np.inf]]), (text,), text)
    grid = TokenGrid((text,), (text, text), np.full((1, 1, 2), np.nan), (text,), (((text,), (text,)),))
    found = FeatureList(np.array([1]), np.array([np.nan]), (text,))
    for result in (scores, graph, table, curve, grid, found):
        assert PIL.Image.open(io.BytesIO(cards.draw(text, [text] * 5, result))).size == (1200, 630)


# ------------------------------------------------------------------------------------------------------------ embedded


@pytest.mark.parametrize(
    "page", [each if each in ("heatmaps", "steering") else pytest.param(each, marks=pytest.mark.slow) for each in PAGES]
)
def test_inside_another_page_there_is_the_figure_and_a_way_out(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(st.context), "is_embedded", property(lambda self: True))
    app = opened(page)
    assert not app.exception and not app.title
    assert not app.text_area and not app.text_input and not app.file_uploader and not app.selectbox
    assert app.session_state["page-shown"].parts
    ways = app.get("link_button")
    assert [each.proto.label for each in ways][-1] == "Open in Actiscope"
    assert f"/{page}?" in ways[-1].proto.url and "embed" not in ways[-1].proto.url


# -------------------------------------------------------------------------------------------------- a view as one file


def written(app: AppTest) -> str:
    page = app.session_state["page-shown"]
    return export.page(*page.about, page.parts, page.title, f"{HOST}/prompts?v=1").decode()


def test_a_file_holds_the_view_its_numbers_and_no_way_out() -> None:
    app = opened("prompts", v="1", model="stories", prompt=f"He said {EVIL}", lens="logit_lens")
    assert not app.exception
    text = written(app)
    tags = Tags(text).found
    scripts = [each for name, each in tags if name == "script"]
    running = [each for each in scripts if each.get("type") != "application/json"]
    assert running == [{}] and not [each for name, each in tags if name in ("img", "iframe", "link", "base", "object")]
    script = text[text.index("<script>") + len("<script>") : text.rindex("</script>")]
    policy = next(each["content"] for _, each in tags if each.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none'")
    assert all((each.get("src"), each.get("onerror")) == (None, None) for _, each in tags)
    data = dict(re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text, re.DOTALL))
    experiment, result = app.session_state["page-shown"].about
    assert Experiment.from_json(json.dumps(json.loads(data["experiment"]))) == experiment
    assert json.loads(data["numbers"]) == json.loads(result.to_json())
    mounted = [json.loads(value) for key, value in data.items() if key.startswith("data-")]
    assert {"strip", "matrix"} <= {each["name"] for each in mounted}
    for part in (
        "What it assumes",
        "When it misleads",
        "BibTeX",
        html.escape(experiment.to_python()),
        html.escape(EVIL),
    ):
        assert part in text
    assert not re.search(r"https?://(?!actiscope\.example|www\.|arxiv|[a-z.]*org)", data["styles"])


def test_large_numbers_are_left_out_and_that_is_said() -> None:
    experiment = first().experiment
    result = Heatmap(np.random.default_rng(0).normal(size=(400, 400)), (400, 400))
    text = export.page(experiment, result, {}, "A title", "").decode()
    assert len(text) < 200_000 and 'id="numbers"' not in text and "are over 1 MB" in text
    rows = [[f"row {at}", 0.123456789] for at in range(600)]
    text = export.page(experiment, result, {"t": ("table", {"columns": ["", EVIL], "rows": rows})}, EVIL, "").decode()
    assert "0.1235" in text and "100 more rows" in text and "<img" not in text and "javascript:" not in text


def test_a_link_in_a_file_is_one_to_a_page() -> None:
    experiment = first().experiment
    for link in ("javascript:alert(1)", "/heatmaps", f"{HOST}/{EVIL}"):
        tags = Tags(export.page(experiment, Text("x"), {}, "t", link).decode()).found
        links = [each["href"] for name, each in tags if name == "a" and "href" in each]
        assert all(str(each).startswith("http") for each in links) and (len(links) == 2) == link.startswith("http")


def test_a_change_reads_as_people_say_it() -> None:
    assert export.said(Call("steer", direction="stories/sentiment", layer=2, strength=-0.5)) == (
        "Steer: direction stories/sentiment, layer 2, strength -0.5"
    )
    with pytest.raises(Unsuitable):
        Call("no_such_method")
