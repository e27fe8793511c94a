"""What lies along a direction is taken out of the stream, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp.methods.change.project_out import project_out
from interp.samples import Prompt
from tests import tiny
from tests.methods.change.pushed import FAMILIES, PADDED, TEXT, direction, seen
from tests.test_hooks import near

PROMPT = Prompt(TEXT)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.3, 1.0, 2.0])
def test_so_much_of_the_part_along_it_goes_and_the_rest_stays(family: str, share: float) -> None:
    model = tiny.language(family)
    u = direction(model).at(1) / direction(model).at(1).norm()
    ((before, after),) = seen(model, project_out(model, PROMPT, layer=1, share=share), 1, lambda: model(PADDED))
    real = PADDED >= 0
    near((after @ u)[real], (1 - share) * (before @ u)[real], 1e-4)
    rest = [h - (h @ u)[..., None] * u for h in (before, after)]
    near(rest[1], rest[0], 1e-4)
    assert torch.equal(after[~real], before[~real])


@pytest.mark.parametrize("family", FAMILIES)
def test_after_every_layer_nothing_is_left_along_it(family: str) -> None:
    model = tiny.language(family)
    u = direction(model).at(1) / direction(model).at(1).norm()
    sites = [f"resid_post.{layer}" for layer in range(model.layers)]
    with project_out(model, PROMPT, layer=1, share=1.0, every=True), model.record(sites) as found:
        model(TEXT)
    with model.record(sites) as plain:
        model(TEXT)
    for site in sites:
        assert (found[site] @ u).abs().max() < 1e-5 * found[site].norm(dim=-1).max()
        assert (plain[site] @ u).abs().max() > 1e-3
    with project_out(model, PROMPT, layer=1, share=1.0), model.record(sites) as once:
        model(TEXT)
    assert (once[sites[2]] @ u).abs().max() > 1e-3, "a later layer writes it again"


def test_turning_round_twice_gives_the_stream_back() -> None:
    model = tiny.language("gpt2")
    turned = {"direction": direction(model).key, "layer": 0, "share": 2.0}
    with project_out(model, PROMPT, **turned), project_out(model, PROMPT, **turned):
        twice = model(TEXT)
    near(twice, model(TEXT))


@pytest.mark.parametrize("where", ["prompt", "generated"])
def test_only_tokens_of_the_prompt_or_behind_it_lose_it(where: str) -> None:
    model = tiny.language("llama")
    block = project_out(model, PROMPT, direction=direction(model).key, layer=1, share=1.0, where=where)
    ((before, after),) = seen(model, block, 1, lambda: model(PADDED))
    changed = (after != before).any(-1)
    assert changed[:, -1].tolist() == [where == "generated"] * 3
    assert (changed[:, :-1] == ((PADDED[:, :-1] >= 0) & (where == "prompt"))).all()
