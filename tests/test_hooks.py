"""Record, edit, go around, swap, on networks written out a second time by hand and on every family."""

from __future__ import annotations

import contextvars
import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp import Unsuitable, hooks
from interp.hooks import here
from interp.model import LanguageModel, Model
from interp.sites import Site
from tests import slow, tiny

IDS = torch.tensor([[3, 5, 7, 9, 11, 200], [17, 4, 90, 3, 3, 1]])
BOTH = pytest.mark.parametrize(("family", "by_hand"), [("gpt2", slow.gpt2), ("llama", slow.llama)])
SITES = ["input"] + [
    f"{kind}.{layer}"
    for layer in (0, 2)
    for kind in (
        "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post",
    )
]  # fmt: skip


def near(left: Tensor, right: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def noise(like: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


# ------------------------------------------------------------------------------------------------------ against by hand


@BOTH
def test_every_site_is_what_the_paper_says(family: str, by_hand: Any) -> None:
    model = tiny.language(family)
    with model.record(model.sites()) as recorded:
        logits = model(IDS)
    expected, trace = by_hand(model.network, IDS)
    near(logits, expected)
    for site in SITES:
        near(recorded[site], trace[site])
    near(recorded["pattern.1"].sum(-1), torch.ones(recorded["pattern.1"].shape[:-1]))
    near(recorded["embed"], trace["input"])


@BOTH
@pytest.mark.parametrize("site", SITES)
def test_an_edit_does_what_it_does_by_hand(family: str, by_hand: Any, site: str) -> None:
    model = tiny.language(family)

    def change(value: Tensor) -> Tensor:
        return value * 0.7 + 0.2 * noise(value)

    expected, trace = by_hand(model.network, IDS, {site: change})
    with model.edit({site: change}), model.record([site, "resid_post.2"]) as recorded:
        logits = model(IDS)
    near(logits, expected)
    near(recorded[site], trace[site])
    near(recorded["resid_post.2"], trace["resid_post.2"])
    assert not torch.equal(logits, model(IDS))


@BOTH
@pytest.mark.parametrize("kind", ["q", "k", "v", "pattern", "z"])
def test_an_edit_of_one_head_changes_that_head_alone(family: str, by_hand: Any, kind: str) -> None:
    model = tiny.language(family)
    axis, head = (1 if kind == "pattern" else 2), 1

    def change(value: Tensor) -> Tensor:
        return value * 0.3

    def by_slice(value: Tensor) -> Tensor:
        value = value.clone()
        value.select(axis, head).mul_(0.3)
        return value

    expected, trace = by_hand(model.network, IDS, {f"{kind}.1": by_slice})
    with (
        model.record([f"{kind}.1", f"{kind}.1.{head}", f"{kind}.1.0"]) as recorded,
        model.edit({f"{kind}.1.1": change}),
    ):
        near(model(IDS), expected)
    near(recorded[f"{kind}.1"], trace[f"{kind}.1"])
    near(recorded[f"{kind}.1.{head}"], trace[f"{kind}.1"].select(axis, head))
    near(recorded[f"{kind}.1.0"], trace[f"{kind}.1"].select(axis, 0))


@BOTH
def test_gradients_equal_finite_differences(family: str, by_hand: Any) -> None:
    model = tiny.language(family)
    sites = [site for site in SITES if site.endswith((".0", "input"))]
    for site in sites:
        with model.record([site], grad=True) as recorded:
            score = model(IDS)[0, -1, 7]
        value = recorded[site]
        assert value.is_leaf and value.requires_grad
        (gradient,) = torch.autograd.grad(score, value)
        direction = noise(value)
        shifted = [
            by_hand(_double(model), IDS, {site: lambda x, step=h * direction: x + step})[0][0, -1, 7]
            for h in (1e-4, -1e-4)
        ]
        expected = float(shifted[0] - shifted[1]) / 2e-4
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=2e-3), site


def _double(model: Model) -> Any:
    # not of a clone: its Parameters are the original's, and would change with it
    return copy.deepcopy(model.network).double()


@BOTH
def test_gradients_at_many_sites_equal_those_at_each(family: str, by_hand: Any) -> None:
    """The shallowest site is the leaf; the deeper ones lie on the path, resid_mid and single heads too."""
    model = tiny.language(family)
    sites = ["resid_pre.0", "attn_out.1", "resid_mid.1", "z.1.0", "z.1.1", "pattern.2", "mlp_post.1", "resid_mid.2"]
    with model.record(sites, grad=True) as recorded:
        score = model(IDS)[1, 3].square().sum()
    together = torch.autograd.grad(score, [recorded[site] for site in sites])
    assert recorded["resid_pre.0"].is_leaf and not recorded["resid_mid.1"].is_leaf
    for site, gradient in zip(sites, together, strict=True):
        with model.record([site], grad=True) as alone:
            score = model(IDS)[1, 3].square().sum()
        near(gradient, torch.autograd.grad(score, alone[site])[0], 1e-3)
        assert gradient.any()


# ---------------------------------------------------------------------------------------------------- order and blocks


def test_edits_apply_in_order_of_entry_and_a_record_sees_all_of_them() -> None:
    model = tiny.language("gpt2")
    site = "resid_post.1"
    with model.record([site]) as plain:
        model(IDS)
    with model.record([site]) as outer, model.edit({site: lambda x: x + 1}), model.edit({site: lambda x: x * 3}):  # noqa: SIM117
        with model.record([site]) as inner:
            model(IDS)
    near(outer[site], (plain[site] + 1) * 3)
    assert torch.equal(outer[site], inner[site])


def test_whole_and_head_edits_of_one_site_keep_their_order() -> None:
    model = tiny.language("llama")
    with model.record(["z.1"]) as plain:
        model(IDS)
    with (
        model.edit({"z.1.2": lambda x: x + 1}),
        model.edit({"z.1": lambda x: x * 2}),
        model.edit({"z.1.2": lambda x: x - 5}),
        model.record(["z.1"]) as recorded,
    ):
        model(IDS)
    expected = plain["z.1"] * 2
    expected[:, :, 2] += 2 - 5
    near(recorded["z.1"], expected)


def test_attn_out_and_resid_mid_are_edited_and_recorded_together() -> None:
    model = tiny.language("gpt2")
    with model.record(["resid_pre.1", "attn_out.1", "resid_mid.1"]) as plain:
        model(IDS)
    near(plain["resid_pre.1"] + plain["attn_out.1"], plain["resid_mid.1"])
    edits = {"resid_mid.1": lambda x: x * 2, "attn_out.1": lambda x: x + 1}
    with model.edit(edits), model.record(["resid_pre.1", "attn_out.1", "resid_mid.1"]) as recorded:
        model(IDS)
    near(recorded["resid_mid.1"], 2 * (plain["resid_mid.1"] + 1))
    # what attention adds is what makes the sum true
    near(recorded["attn_out.1"], recorded["resid_mid.1"] - plain["resid_pre.1"])


def test_an_edit_that_returns_its_input_changes_nothing_bit_for_bit() -> None:
    for model, given in ((tiny.language("llama"), IDS), (tiny.vision("vit"), tiny.image())):
        plain = model(given)
        sites = [site for site in model.sites() if site.kind != "pattern"]  # the pattern exists in eager attention only
        with model.edit({site: lambda x: x for site in sites}):
            assert torch.equal(model(given), plain)


def test_blocks_undo_themselves_after_exceptions_and_cannot_be_entered_twice() -> None:
    model = tiny.language("gpt2")
    plain = model(IDS)
    with pytest.raises(ZeroDivisionError), model.edit({"resid_post.0": lambda x: x * 0}):
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), model.edit({"resid_post.0": lambda x: x / (1 // 0)}):
        model(IDS)
    block = model.edit({"resid_post.0": lambda x: x * 0})
    with block, pytest.raises(RuntimeError), block:
        pass
    with block:  # but one after the other
        assert not torch.equal(model(IDS), plain)
    assert torch.equal(model(IDS), plain)
    assert hooks.in_force() == ()


def test_a_failing_block_leaves_nothing_in_force() -> None:
    model = tiny.language("gpt2")
    with (
        pytest.raises(KeyError),
        model.swap({"transformer.wte.weight": torch.zeros(258, 16), "no.such": torch.zeros(1)}),
    ):
        pass
    assert hooks.in_force() == () and model.network is model._network

    def wrong() -> Any:
        raise ValueError

    block = hooks.Block(lambda: (hooks._IN_FORCE, (1,)), wrong)
    with pytest.raises(ValueError), block:
        pass
    assert hooks.in_force() == ()


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_second_forward_raises_unless_every_is_asked_for() -> None:
    model = tiny.language("gpt2")
    with model.record(["resid_post.0"]) as recorded:
        model(IDS)
        with pytest.raises(RuntimeError, match="every"):
            model(IDS)
    with model.record(["resid_post.0"], every=True) as lists:
        assert lists["resid_post.0"] == []
        model(IDS)
        model(IDS[:1])
    assert [len(each) for each in lists["resid_post.0"]] == [2, 1]
    assert torch.equal(lists["resid_post.0"][0], recorded["resid_post.0"])


def test_a_site_no_forward_reached_is_a_key_error() -> None:
    model = tiny.language("gpt2")
    with model.record(["resid_post.0", "z.1"]) as recorded:
        with pytest.raises(KeyError, match="reached"):
            recorded["z.1"]
        with model.around({1: lambda run, x: x}):
            model(IDS)
    assert recorded["resid_post.0"].shape == (2, 6, 16)
    with pytest.raises(KeyError, match="reached"):
        recorded["z.1"]
    with pytest.raises(KeyError):
        recorded["z.0"]


def test_a_record_is_a_mapping() -> None:
    model = tiny.language("llama")
    with model.record(["resid_post.0", "blocks.1.attn.hook_rot_q"]) as recorded:
        model(IDS)
    assert list(recorded) == [Site("resid_post", 0), Site("q", 1)] and len(recorded) == 2
    assert recorded["q.1"] is recorded["blocks.1.attn.hook_rot_q"] and recorded.get("q.1") is recorded["q.1"]
    assert "q.1" in recorded and "q.0" not in recorded and recorded.get(Site("q", 0)) is None
    assert dict(recorded.items())[Site("q", 1)] is recorded["q.1"]


def test_edits_that_change_in_place_or_return_something_else_are_refused() -> None:
    model, picture = tiny.vision("resnet"), tiny.image()
    plain = model(picture)
    for site in model.sites():
        with pytest.raises(RuntimeError, match="in place"), model.edit({site: lambda x: x.mul_(2)}):
            model(picture)
        with pytest.raises(TypeError), model.edit({site: lambda x: None}):  # type: ignore[arg-type,dict-item]
            model(picture)
        with pytest.raises(ValueError, match="shape"), model.edit({site: lambda x: x[:, :1]}):
            model(picture)
        with pytest.raises(ValueError, match="shape"), model.edit({site: lambda x: x.mean()}):
            model(picture)
    assert torch.equal(model(picture), plain)
    language = tiny.language("gpt2")
    with pytest.raises(RuntimeError, match="in place"), language.edit({"z.1.0": lambda x: x.mul_(2)}):
        language(IDS)


def test_an_edit_may_make_a_batch_of_variants() -> None:
    model = tiny.vision("resnet")
    picture = tiny.image()
    with model.edit({"stage.0": lambda x: torch.cat([x, x * 0, x * 2])}):
        logits = model(picture)
    assert logits.shape == (3, 3)
    near(logits[:1], model(picture))
    with model.edit({"stage.0": lambda x: x * 2}):
        near(logits[2:], model(picture))


def test_here_is_known_only_inside_a_forward() -> None:
    with pytest.raises(RuntimeError):
        here()


# ------------------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize("family", tiny.VISION)
def test_sites_of_vision_families(family: str) -> None:
    _check_sites(tiny.vision(family), tiny.image())


def _check_sites(model: Model, given: Any) -> None:
    """Recording changes nothing, what is recorded is not changed afterwards, edits take effect, gradients flow."""
    plain = model(given)
    with model.record(model.sites()) as recorded:
        near(model(given), plain, 2e-4)
    for site in model.sites():
        value = recorded[site]
        with model.edit({site: lambda x: x + 0.5 * noise(x)}), model.record([site]) as after:
            changed = model(given)
        near(after[site], value + 0.5 * noise(value), 1e-3)
        assert not torch.equal(changed, plain), f"an edit of {site} has no effect"
        with model.record([site], grad=True) as leaf:
            logits = model(given)
        near(logits, plain, 2e-4)
        assert leaf[site].is_leaf
        (gradient,) = torch.autograd.grad(logits.flatten()[-1] + logits.flatten()[0], leaf[site])
        assert gradient.shape == value.shape
    assert torch.equal(model(given), plain)


@pytest.mark.parametrize("family", tiny.VISION)
def test_what_a_module_gave_is_recorded_before_the_network_changes_it_in_place(family: str) -> None:
    """ResNet and RegNet add the residual in place to the output of a module."""
    model = tiny.vision(family)
    picture = tiny.image()
    seen: dict[str, Tensor] = {}
    network = hooks.clone(model.network)
    for path, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _, __, output, path=path: (
                    seen.__setitem__(path, output.clone()) if isinstance(output, Tensor) else None
                )
            )
    for path in ("layer", "layers.0.layer"):
        for name, module in network.named_modules():
            if name.endswith(path) and isinstance(module, nn.Sequential):
                module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output.clone()))
    with hooks.at(hooks.Here()):
        plain = network(pixel_values=model.inputs(picture)).logits
    paths = [path for path in seen if path]
    with model.record([f"module:{path}" for path in paths], every=True) as recorded:  # some modules are used twice
        assert torch.equal(model(picture), plain)
    for path in paths:
        assert torch.equal(recorded[f"module:{path}"][-1], seen[path]), path
    if family in ("resnet", "regnet"):
        inner = [path for path in paths if path.endswith(".layer")]
        assert inner
        kept = recorded[f"module:{inner[0]}"][0] * 2
        before = kept.clone()
        with model.edit({f"module:{inner[0]}": lambda x: kept}):
            first = model(picture)
            assert torch.equal(model(picture), first) and torch.equal(kept, before)
        with model.record([f"module:{inner[0]}"], grad=True) as leaf:
            logits = model(picture)
        assert torch.autograd.grad(logits[0, 0], leaf[f"module:{inner[0]}"])[0].any()


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2_with_registers", "beit"])
def test_attention_of_vision_transformers_by_hand(family: str) -> None:
    model = tiny.vision(family)
    with model.record(["q.1", "k.1", "v.1", "pattern.1", "z.1"]) as recorded:
        model(tiny.image())
    q, k, v, pattern, z = (recorded[f"{kind}.1"] for kind in ("q", "k", "v", "pattern", "z"))
    near(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    near(z, torch.einsum("bhqk,bkhd->bqhd", pattern, v))
    if family != "beit":  # which adds a bias of relative positions
        near(pattern, (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1))


@pytest.mark.parametrize("family", [*tiny.VISION, "gpt2", "llama", "opt", "gpt_neox", "gemma2"])
def test_blocks_can_be_skipped_repeated_and_replayed(family: str) -> None:
    language = family in tiny.LANGUAGE
    model: Model = tiny.language(family) if language else tiny.vision(family)
    given: Any = IDS if language else tiny.image()
    if not model.parts.blocks:
        with pytest.raises(Unsuitable):
            model.around({0: lambda run, x: x})
        return
    plain = model(given)
    sites = ["resid_pre.1", "resid_post.1"]
    with model.record(sites) as untouched:
        model(given)
    with model.around({1: lambda run, x: run(x)}):
        assert torch.equal(model(given), plain)
    with model.around({1: lambda run, x: x}), model.record(sites) as skipped:
        without = model(given)
    assert torch.equal(skipped[sites[0]], skipped[sites[1]]) and not torch.equal(without, plain)
    with (
        model.around({0: lambda run, x: x, 1: lambda run, x: x, 2: lambda run, x: x}),
        model.record(["resid_pre.0", "resid_post.2"]) as all_skipped,
    ):
        model(given)
    assert torch.equal(all_skipped["resid_pre.0"], all_skipped["resid_post.2"])
    with model.around({1: lambda run, x: run(run(x))}), model.record(sites) as twice:
        repeated = model(given)
    with model.edit({"resid_pre.1": lambda x: untouched["resid_post.1"]}):
        assert torch.equal(model(given), repeated)
    assert torch.equal(twice["resid_pre.1"], untouched["resid_pre.1"])
    reached: list[int] = []
    with model.around({0: lambda run, x: untouched["resid_pre.1"], 1: lambda run, x: untouched["resid_post.1"]}):
        assert torch.equal(model(given), plain)
    with model.around({1: lambda run, x: run(x)}), model.around({1: lambda run, x: reached.append(1) or run(x)}):  # type: ignore[func-returns-value]
        assert torch.equal(model(given), plain) and reached == [1]
    for layer in (-1, 3):
        with pytest.raises(Unsuitable):
            model.around({layer: lambda run, x: x})


def test_resid_mid_is_right_in_a_repeated_block() -> None:
    model = tiny.language("gpt2")
    sites = ["attn_out.1", "resid_mid.1"]
    with model.around({1: lambda run, x: run(run(x))}), model.record(sites, every=True) as recorded:
        model(IDS)
    with model.record(["resid_pre.1", "resid_post.1"]) as once:
        model(IDS)
    for index, pre in enumerate((once["resid_pre.1"], once["resid_post.1"])):
        near(recorded["resid_mid.1"][index], pre + recorded["attn_out.1"][index])


# -------------------------------------------------------------------------------------------------------------- swaps


@BOTH
def test_a_swap_runs_with_other_weights_and_leaves_the_network_bit_for_bit(family: str, by_hand: Any) -> None:
    model = tiny.language(family)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    plain, digest = model(IDS), model.digest
    for name in before:
        other = before[name] + 0.3 * noise(before[name])
        twin = copy.deepcopy(model.network)
        tied = [each for each in before if model.weight(each) is model.weight(name)]
        with torch.no_grad():
            twin.get_parameter(name).copy_(other)
        expected = by_hand(twin, IDS)[0]
        with model.swap({name: other}):
            assert torch.equal(model.weight(name), other)
            near(model(IDS), expected)
            shared = [each for each in before if each not in tied]
            assert all(model.weight(each) is model._network.get_parameter(each) for each in shared)
        with pytest.raises(ZeroDivisionError), model.swap({name: other}):
            model(IDS)
            1 / 0  # noqa: B018
    assert all(torch.equal(model._network.state_dict()[name], before[name]) for name in before)
    assert torch.equal(model(IDS), plain) and model.digest == digest and model.network is model._network


def test_a_tied_parameter_changes_under_all_its_names() -> None:
    model = tiny.language("gpt2")
    assert model.weight("lm_head.weight") is model.weight("transformer.wte.weight")
    other = noise(model.weight("lm_head.weight"))
    for name in ("lm_head.weight", "transformer.wte.weight"):
        with model.swap({name: other}):
            assert torch.equal(model.weight("lm_head.weight"), other)
            assert torch.equal(model.weight("transformer.wte.weight"), other)
            with model.record(["input"]) as recorded:
                logits = model(IDS)
        assert torch.equal(recorded["input"], other[IDS])
        near(logits, slow.gpt2(_swapped(model, other), IDS)[0])


def _swapped(model: Model, other: Tensor) -> Any:
    twin = copy.deepcopy(model._network)
    with torch.no_grad():
        twin.get_parameter("transformer.wte.weight").copy_(other)
    return twin


def test_swaps_nest_and_edits_act_inside_them() -> None:
    model = tiny.language("llama")
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    plain = model(IDS)
    with model.swap({first: model.weight(first) * 2}):
        one = model(IDS)
        with model.swap({second: model.weight(second) * 2}), model.edit({"resid_mid.2": lambda x: x * 2}):
            both = model(IDS)
            assert torch.equal(model.weight(first), model._network.get_parameter(first) * 2)
        assert torch.equal(model(IDS), one)
    with (
        model.edit({"resid_mid.2": lambda x: x * 2}),
        model.swap({first: model.weight(first) * 2, second: model.weight(second) * 2}),
    ):
        assert torch.equal(model(IDS), both)
    assert torch.equal(model(IDS), plain)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) * 2  # type: ignore[no-any-return]


def test_a_module_swapped_in_is_reached_by_sites_and_left_as_it_was() -> None:
    model = tiny.language("gpt2")
    plain = model(IDS)
    original = model._network.get_submodule("transformer.h.1.mlp")
    wrapper = Wrapped(original)
    with model.record(["mlp_out.1", "mlp_post.1"]) as before:
        model(IDS)
    with model.swap({"transformer.h.1.mlp": wrapper}), model.record(["mlp_out.1"]) as recorded:
        assert not torch.equal(model(IDS), plain)
        with model.around({1: lambda run, x: x}):  # the block itself still is one
            pass
    near(recorded["mlp_out.1"], before["mlp_out.1"] * 2)
    assert not wrapper._forward_hooks and not hasattr(wrapper, "_address")
    assert torch.equal(model(IDS), plain)
    with model.record(["mlp_post.1"]) as after:  # the wrapped original kept its address
        model(IDS)
    assert torch.equal(after["mlp_post.1"], before["mlp_post.1"])
    block = copy.deepcopy(model._network.get_submodule("transformer.h.1"))
    with torch.no_grad():
        block.mlp.c_proj.weight.mul_(3)
    with (
        model.swap({"transformer.h.1": block}),
        model.around({1: lambda run, x: x}),
        model.record(["resid_post.1", "resid_pre.1"]) as skipped,
    ):
        model(IDS)
    assert torch.equal(skipped["resid_post.1"], skipped["resid_pre.1"])


def test_names_and_shapes_that_do_not_fit_are_refused() -> None:
    model = tiny.language("gpt2")
    for name in ("nothing", "no.such.weight", "transformer.h.9.mlp.c_fc.weight", ""):
        with pytest.raises(KeyError), model.swap({name: torch.zeros(1)}):
            pass
    with pytest.raises(ValueError, match="is"), model.swap({"transformer.wte.weight": torch.zeros(2)}):
        pass
    with pytest.raises(KeyError), model.swap({"transformer.nothing": nn.Identity()}):
        pass


def test_buffers_can_be_swapped() -> None:
    model = tiny.vision("resnet")
    name = next(name for name, _ in model.network.named_buffers() if name.endswith("running_mean"))
    plain = model(tiny.image())
    with model.swap({name: model.weight(name) + 1}):
        assert not torch.equal(model(tiny.image()), plain)
    assert torch.equal(model(tiny.image()), plain)


# ----------------------------------------------------------------------------------------------- contexts and handles


def test_another_thread_and_another_context_see_nothing_of_it() -> None:
    model = tiny.language("gpt2")
    plain = _in_a_thread(lambda: model(IDS))
    with (
        model.edit({"resid_post.0": lambda x: x * 0}),
        model.swap({"transformer.wte.weight": noise(model.weight("lm_head.weight"))}),
    ):
        assert torch.equal(_in_a_thread(lambda: model(IDS)), plain)
        changed = model(IDS)
        near(contextvars.copy_context().run(model, IDS), changed)
        near(_in_a_thread(lambda: contextvars.copy_context().run(model, IDS)), plain)
        context = contextvars.copy_context()
        near(_in_a_thread(lambda: context.run(model, IDS)), changed)


def _in_a_thread(work: Callable[[], Tensor]) -> Tensor:
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_two_handles_on_one_network_do_not_double_its_hooks() -> None:
    model = tiny.language("gpt2")
    count = sum(len(module._forward_hooks) for module in model.network.modules())
    second = LanguageModel(model.network, model.tokenizer)
    assert sum(len(module._forward_hooks) for module in model.network.modules()) == count
    with second.edit({"resid_post.0": lambda x: x + 1}):
        changed = second(IDS)
    with model.edit({"resid_post.0": lambda x: x + 1}):
        assert torch.equal(model(IDS), changed)


def test_a_copy_of_a_network_is_a_network_of_its_own() -> None:
    model = tiny.language("gpt2")
    twin = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
    plain = model(IDS)
    assert torch.equal(twin(IDS), plain) and twin.owner != model.owner and twin.digest == model.digest
    with twin.edit({"resid_post.0": lambda x: x + 1}), twin.swap({"lm_head.weight": twin.weight("lm_head.weight") * 2}):
        assert not torch.equal(twin(IDS), plain)
        assert torch.equal(model(IDS), plain)


def test_edits_of_two_models_at_once_keep_apart() -> None:
    left, right = tiny.language("gpt2"), tiny.language("llama")
    plain = right(IDS)
    with left.edit({"resid_post.0": lambda x: x + 1}):
        assert torch.equal(right(IDS), plain)
    with left.edit({"pattern.0": lambda x: x}):
        near(right(IDS), plain)


def test_inference_mode_works() -> None:
    model = tiny.language("gpt2")
    plain = model(IDS)
    with torch.inference_mode():
        assert torch.equal(model(IDS), plain)
        with model.edit({"resid_post.0": lambda x: x * 2}), model.record(["resid_post.0"]) as recorded:
            model(IDS)
    assert recorded["resid_post.0"].any()
