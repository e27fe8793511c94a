"""The address of an activation and its text."""

import pytest

from interp import Unsuitable
from interp.sites import HEADED, LAYERED, PLAIN, Site


def test_text_and_site_are_inverse() -> None:
    sites = [Site(kind) for kind in PLAIN]
    sites += [Site(kind, layer) for kind in (*LAYERED, *HEADED) for layer in (0, 3, 127)]
    sites += [Site(kind, 2, head) for kind in HEADED for head in (0, 15)]
    sites += [Site("module", path=path) for path in ("encoder.stages.3", "encoder.stages.3:in", "a-b_c.0")]
    for site in sites:
        assert Site.parse(str(site)) == site
        assert Site.parse(site) is site
    assert len({str(site) for site in sites}) == len(set(sites)) == len(sites)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("hook_embed", "embed"),
        ("blocks.3.hook_resid_pre", "resid_pre.3"),
        ("blocks.3.hook_resid_mid", "resid_mid.3"),
        ("blocks.3.hook_resid_post", "resid_post.3"),
        ("blocks.0.hook_attn_out", "attn_out.0"),
        ("blocks.0.hook_mlp_out", "mlp_out.0"),
        ("blocks.11.mlp.hook_post", "mlp_post.11"),
        ("blocks.2.attn.hook_v", "v.2"),
        ("blocks.2.attn.hook_z", "z.2"),
        ("blocks.2.attn.hook_pattern", "pattern.2"),
    ],
)
def test_names_of_transformer_lens_are_read(theirs: str, ours: str) -> None:
    assert Site.parse(theirs) == Site.parse(ours)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "resid_post", "resid_post.",
        "resid_post.-1", "resid_post.x", "resid_post.1.2", "resid_post.1.2.3", "embed.0",
        "input.1", "nothing.3", "z.3.-1", "z.3.5.1", "module", "module:",
        "blocks.3.hook_nothing", "blocks.x.hook_resid_pre",
        "hook_pos_embed", "Resid_post.3", " resid_post.3", "resid_post.3\n", "z.1.999999", "stage",
        "resid_post.99999",
        "blocks.99999.hook_z", "resid_post.٣",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(Unsuitable):
        Site.parse(text)


def test_impossible_sites_are_refused() -> None:
    for arguments in (
        {"kind": "resid_post"},
        {"kind": "resid_post", "layer": -1},
        {"kind": "resid_post", "layer": 0, "head": 0},
        {"kind": "embed", "layer": 0},
        {"kind": "module"},
        {"kind": "module", "path": "a", "layer": 1},
        {"kind": "z", "layer": 0, "head": -1},
        {"kind": "z", "layer": 0, "path": "a"},
        {"kind": "nothing", "layer": 0},
        {"kind": "z", "layer": "0"},
        {"kind": "z", "layer": True},
        {"kind": "z", "layer": 0, "head": "1"},
    ):
        with pytest.raises(Unsuitable):
            Site(**arguments)


def test_sites_can_be_keys_and_sorted() -> None:
    assert len({Site("z", 1, 2), Site.parse("z.1.2"), Site("z", 1)}) == 2
    sites = [Site.parse(text) for text in ("z.1.2", "embed", "z.1", "module:a", "resid_post.3")]
    assert sorted(sites) == sorted(reversed(sites))
