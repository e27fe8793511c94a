"""Pages show all of the index and what fires here; neighbours equal slow loops; the map has a row per feature."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from interp import Unsuitable, sae
from interp.methods.features.feature_map import feature_map
from interp.methods.features.feature_neighbours import feature_neighbours
from interp.methods.features.feature_page import feature_page
from tests import tiny
from tests.methods.features import kept
from tests.methods.features.kept import PROMPT


@pytest.mark.parametrize(("family", "architecture"), [("gpt2", "jumprelu"), ("llama", "transcoder")])
def test_a_page_is_the_indexs_page(family: str, architecture: str) -> None:
    model = tiny.language(family)
    name = kept.keep(model, architecture, seed=5)
    with pytest.raises(Unsuitable, match="no index yet"):
        feature_page(model, PROMPT, sae=name)
    known = kept.index(model, name)
    f = kept.dense(model, name, PROMPT)
    for feature in (0, 3, int(known.count.argmax()), int(known.count.argmin())):
        page, got = known.page(feature, model), feature_page(model, PROMPT, sae=name, feature=feature)
        contexts = [*page.top, *(each for _, _, some in page.quantiles for each in some)]
        assert got.contexts == tuple(each.tokens for each in contexts) and got.marks.tolist() == [
            e.at for e in contexts
        ]
        for row, context in zip(got.activations, contexts, strict=True):
            np.testing.assert_array_equal(row[: len(context.values)], context.values)
            assert np.isnan(row[len(context.values) :]).all()
        assert got.groups.count("top") == len(page.top) and len(set(got.groups)) <= 5
        assert (got.density, got.maximum, got.mean) == (page.density, page.maximum, page.mean)
        assert got.counts.sum() == page.count and len(got.edges) == len(got.counts) + 1
        assert tuple(zip(got.promoted, got.gains, strict=True)) == page.promoted
        assert tuple(zip(got.suppressed, got.losses, strict=True)) == page.suppressed
        assert tuple(zip(got.neighbours, got.cosines, strict=True)) == page.neighbours
        assert tuple(zip(got.together, got.overlaps, strict=True)) == page.together
        np.testing.assert_allclose(got.here, f[:, feature], rtol=1e-5, atol=1e-6)
        assert got.tokens == tuple(model.tokens(PROMPT.text))
        assert ("never fired" in got.note) == (page.count == 0)
    with pytest.raises(Unsuitable, match="has features 0 to 31"):
        feature_page(model, PROMPT, sae=name, feature=32)


def test_on_images_contexts_are_pictures_with_their_patches() -> None:
    model = tiny.vision("vit")
    name = kept.keep(model)
    known = kept.index(model, name)
    feature = int(known.count.argmax())
    page, got = known.page(feature, model), feature_page(model, tiny.image(), sae=name, feature=feature)
    contexts = [*page.top, *(each for _, _, some in page.quantiles for each in some)]
    assert len(got.images) == len(contexts) == len(got.grids) and base64.b64decode(got.images[0])[:2] == b"\xff\xd8"
    np.testing.assert_allclose(got.grids, [each.values.reshape(4, 4) for each in contexts])
    np.testing.assert_allclose(got.here, kept.dense(model, name, tiny.image())[1:, feature].reshape(4, 4), rtol=1e-4)


@pytest.mark.parametrize("by", ["decoder", "encoder"])
def test_neighbours_are_alike_in_direction(by: str) -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model, seed=6)
    own = sae.load(name)
    rows = (own.W_dec if by == "decoder" else own.W_enc.T).double().numpy()
    cosines = [
        (float(rows[4] @ row / np.linalg.norm(rows[4]) / np.linalg.norm(row)), number)
        for number, row in enumerate(rows)
        if number != 4
    ]
    wanted = sorted(cosines, reverse=True)[:6]
    got = feature_neighbours(model, PROMPT, sae=name, feature=4, by=by, top=6)
    assert got.features.tolist() == [number for _, number in wanted]
    np.testing.assert_allclose(got.values, [value for value, _ in wanted])
    np.testing.assert_allclose(got.grid, kept.dense(model, name, PROMPT)[:, got.features].T, rtol=1e-5, atol=1e-6)
    with pytest.raises(Unsuitable, match="no index"):
        feature_neighbours(model, PROMPT, sae=name, feature=4, by="together")


def test_what_fires_together_and_the_map_come_from_the_index() -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model, seed=7)
    known = kept.index(model, name)
    feature = int(known.count.argmax())
    got = feature_neighbours(model, PROMPT, sae=name, feature=feature, by="together", top=3)
    assert tuple(zip(got.features, got.values, strict=True)) == known.page(feature, model).together[:3]
    table = feature_map(model, PROMPT, sae=name)
    assert table.columns == ("x", "y", "density", "maximum", "on the sample") and len(table.rows) == 32
    np.testing.assert_allclose(table.values[:, :2], known.map)
    np.testing.assert_allclose(table.values[:, 4], kept.dense(model, name, PROMPT).max(0), rtol=1e-5)
    first = [model.token_text(each) for each in known.promoted_ids[3][:4].tolist()]
    assert table.rows[3] == " ".join(each.strip() or repr(each) for each in first)
