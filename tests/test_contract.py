"""What must always hold, over every method and every tiny model that it serves."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import sys
import tempfile
import threading
import typing
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, hooks, progress
from interp.experiment import Call
from interp.method import Method
from interp.methods import METHODS
from interp.methods.change import _replacement
from interp.model import LanguageModel, Model, VisionModel
from interp.results import Heatmap, Result
from interp.samples import Image, Prompt
from tests import tiny
from tests.acting import ALIKE, IDENTITY, INTERVENTIONS, LENSES, LOOKS, SMALL, acting, fitting
from tests.state import state

FAMILIES = [*tiny.VISION, *tiny.LANGUAGE]

REFUSALS: dict[str, set[str]] = {
    # CAM is defined for a network that ends in average pooling and one linear layer, with no norm between them
    "cam": {
        "convnext", "convnextv2", "vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin", "swinv2",
    },
    # LeGrad reads attention, and its class token or pooling
    "legrad": {
        "resnet", "resnet_bottleneck", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet_v2", "swin",
        "swinv2",
    },
    "deeplift_captum": {"swinv2"},
    # a mixture of experts has no one hidden layer
    "ablate_neurons": {"mixtral"},
    "neuron_detectors": {"mixtral"},
    # both are rules for ReLU
    **{key: {
        "convnext", "convnextv2", "efficientnet", "vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin",
        "swinv2",
    } for key in ("guided_backprop", "deconvnet")},
}  # fmt: skip
"""The models of the right kind that a method refuses: written down, so that none grows unseen."""


STORE = tempfile.mkdtemp(prefix="actiscope-test-")


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests keep of the same tiny models (an SAE without an index, say) is not found here."""
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def made(family: str) -> Any:
    return tiny.featured(tiny.vision(family) if family in tiny.VISION else tiny.language(family))


def sample(model: Any, seed: int = 0, method: Any = None) -> Any:
    """Something for a model to look at; of the kind that a method takes."""
    found = tiny.image(seed) if isinstance(model, VisionModel) else Prompt("The cat sat on the mat")
    return found if method is None else fitting(method, found)


def serves(key: str, model: Any) -> bool:
    return isinstance(model, METHODS[key].model_type) and METHODS[key].refuses(model) is None


PAIRS = [
    pytest.param(key, family, id=f"{key}-{family}")
    for key in METHODS
    for family in FAMILIES
    if issubclass(VisionModel if family in tiny.VISION else LanguageModel, METHODS[key].model_type)
    and METHODS[key].kind != "fit"  # which has tests of its own: each call takes a process and much longer
    and family not in REFUSALS.get(key, ())
]
PLAIN = [pair for pair in PAIRS if pair.values[0] in LENSES]
CHANGING = [pair for pair in PAIRS if pair.values[0] in INTERVENTIONS]


HOLES = {
    ("feature_page", "activations"), ("transport_efficiency", "values"), ("transported_features", "carried"),
    ("transported_features", "held_out"), ("feature_life", "values"), ("feature_life", "row_values"),
    ("transport_check", "values"),
}  # fmt: skip
"""Arrays that hold NaN where there is nothing: contexts are of different lengths, a target lies above its source, a
feature is silent or too rare to be judged, and one text has no spread."""

# ------------------------------------------------------------------------------------------------ 1: it runs everywhere


def test_the_table_of_refusals_is_complete() -> None:
    found: dict[str, set[str]] = {}
    for key, method in METHODS.items():
        for family in FAMILIES:
            model = made(family)
            if isinstance(model, method.model_type) and (reason := method.refuses(model)):
                assert reason.endswith(".") and len(reason) < 300, reason
                found.setdefault(key, set()).add(family)
                with pytest.raises(Unsuitable):
                    method(model, sample(model, 0, method))
    assert found == {key: families for key, families in REFUSALS.items() if key in METHODS}


def test_models_of_the_other_kind_are_refused() -> None:
    for method in METHODS.values():
        if method.model_type is Model:  # it serves both
            continue
        other = made("gpt2" if method.model_type is VisionModel else "resnet")
        with pytest.raises(Unsuitable, match="needs"):
            method(other, sample(other))


KNOWN = ("resnet", "vit", "gpt2")
"""Families on which every lens runs as it is, with all its repetitions."""


def small(key: str, family: str) -> dict[str, Any]:
    """The settings that a lens is looked through with on this family."""
    return {} if family in KNOWN else SMALL.get(key, {})


@pytest.mark.parametrize(("key", "family"), PLAIN)
def test_a_lens_gives_what_it_is_annotated_to_give_and_leaves_everything_as_it_was(key: str, family: str) -> None:
    model, method, seen = made(family), METHODS[key], list[progress.Progress]()
    settings, given = small(key, family), sample(model, 0, METHODS[key])
    estimate = method.estimate(model, settings, given)
    model.forget()
    before = state(model)
    with progress.watch(seen.append):
        result = method(model, given, **settings)
    assert isinstance(result, typing.get_origin(method.returns) or method.returns) and isinstance(result, Result)
    assert result.method == key and result.forwards + result.backwards > 0
    assert state(model) == before
    for name, array in result.arrays().items():
        assert isinstance(array, np.ndarray) and (np.isfinite(array).all() or (key, name) in HOLES), name
    with np.load(io.BytesIO(result.to_npz()), allow_pickle=False) as archive:
        assert result.reproduces({name: archive[name] for name in archive.files if name != "facts"})
    json.loads(result.to_json(), parse_constant=lambda _: pytest.fail("not JSON"))
    if isinstance(result, Heatmap):
        assert result.values.dtype == np.float64 and result.units and result.site and result.target in model.labels
        assert result.at_input().shape == model.input_size and result.box == model.box(sample(model))
    for value in dataclasses.asdict(result).values():
        assert not isinstance(value, Tensor)
    if family in KNOWN:
        costs_what_was_said(key, estimate, result)
    if family in tiny.VISION and (result.forwards > 64 or result.backwards > 64):
        assert len(seen) >= 3 and seen[-1].done == seen[-1].total and seen[0].done == 0
        assert all(each.label for each in seen)
    # the same call gives equal results, cached or not, and changes nothing that is kept
    kept = {name: _copied(value) for name, (value, _) in model._cache.items()}
    assert method(model, given, **settings) == result
    for name, value in kept.items():
        if name in model._cache:
            assert _equal(model._cache[name][0], value), name
    method(model, sample(model, 1, method), **settings)
    model.forget()
    torch.manual_seed(7)  # whatever the process has drawn
    assert method(model, given, **settings) == result


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        assert not value.requires_grad and value.grad_fn is None, "captures are detached"
        return value.clone()
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    return all(map(_equal, left, right)) if isinstance(left, tuple) else bool(left == right)


PARTIAL = ("ablation_cam", "tuned_lens", "acdc")
"""The first runs only what lies above the layer for each example, which the estimate counts in parts and the meter
whole; the second keeps what it has fitted; the third takes as many tries as what it cuts asks for."""


def costs_what_was_said(key: str, estimate: tuple[int, int] | None, result: Result) -> None:
    """The estimate before the run is near what the run took."""
    if estimate is None or key in PARTIAL:
        return
    forwards, backwards = estimate
    assert result.forwards <= forwards * 1.05 + 2 and result.backwards <= backwards * 1.05 + 2, (estimate, result)
    # an estimate far too high would keep people from pressing the button
    assert result.forwards >= forwards * 0.3 - 2 and result.backwards >= backwards * 0.3 - 2, (estimate, result)


BATCHED = [key for key in LENSES if {"BATCH", "BYTES"} & set(vars(sys.modules[METHODS[key].function.__module__]))]


@pytest.mark.parametrize(
    ("key", "family"),
    [
        pair
        for pair in PLAIN
        if pair.values[0] in BATCHED and pair.values[1] in ("resnet", "convnext", "vit", "swin", "gpt2", "gemma2")
    ],
)
def test_the_size_of_batches_changes_nothing_beyond_rounding(
    key: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, method = made(family), METHODS[key]
    module, results = sys.modules[method.function.__module__], []
    for size in (1, 3, 64):
        for name, value in (("BATCH", size), ("BYTES", size * 5000)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        model.forget()
        results.append(method(model, sample(model, 0, method), **SMALL.get(key, {})))
    for other in results[1:]:
        assert other.reproduces(results[0].arrays(), 1e-4)


# -------------------------------------------------------------------- 2: as it was, after exceptions and cancels too


def spread(pairs: list[Any], each: int) -> list[Any]:
    """The pairs, one of so many as they come: each method with some families, each family with many methods; those
    between are marked slow."""
    order = list(METHODS)
    return [
        pair
        if (order.index(pair.values[0]) + FAMILIES.index(pair.values[1])) % each == 0
        else pytest.param(*pair.values, id=pair.id, marks=pytest.mark.slow)
        for pair in pairs
    ]


@pytest.mark.parametrize(("key", "family"), spread(PAIRS, 3))
def test_an_exception_or_a_cancel_in_the_middle_leaves_everything_as_it_was(key: str, family: str) -> None:
    model = made(family)
    before = state(model)
    for count in (1, 2, 5):
        left = [count]

        def fail(value: Tensor, left: list[int] = left) -> Tensor:
            left[0] -= 1
            if left[0] <= 0:
                raise ZeroDivisionError
            return value

        with contextlib.suppress(ZeroDivisionError), model.edit({model.sites()[-1]: fail}):
            _do(key, model)
    assert state(model) == before
    cancel = threading.Event()
    cancel.set()
    model.forget()
    with progress.watch(cancel=cancel), pytest.raises(progress.Cancelled):
        _do(key, model, seed=2)
    for count in (1, 3):
        left = [count]

        def stop(_: progress.Progress, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] <= 0:
                raise KeyboardInterrupt

        model.forget()
        with progress.watch(stop), contextlib.suppress(KeyboardInterrupt):
            _do(key, model)
    assert state(model) == before
    model.forget()
    assert _do(key, model) is not None


def _do(key: str, model: Any, seed: int = 0) -> Any:
    """Look through the lens, or at the logits after the intervention."""
    if key in LENSES:
        return METHODS[key](model, sample(model, seed, METHODS[key]), **SMALL.get(key, {}))
    with METHODS[key](model, sample(model, seed), **acting(model)[key]):
        return model(sample(model, seed))


# --------------------------------------------------------------------------------------------------- 3: interventions


def test_every_intervention_has_settings_here() -> None:
    assert set(INTERVENTIONS) == set(IDENTITY) == set(acting(made("resnet")))


@pytest.mark.parametrize(("key", "family"), CHANGING)
def test_an_intervention_acts_and_undoes_itself(key: str, family: str) -> None:
    model = made(family)
    given = sample(model)
    plain, before = model(given), state(model)
    results = []
    for _ in range(2):
        with METHODS[key](model, given, **acting(model)[key]):
            assert hooks.in_force() and not any(isinstance(call, hooks.Raw) for call in hooks.in_force())
            results.append(model(given))
        assert torch.equal(model(given), plain) and state(model) == before and hooks.in_force() == ()
    assert torch.equal(*results) and not torch.equal(results[0], plain) and results[0].isfinite().all()
    with pytest.raises(ZeroDivisionError), METHODS[key](model, given, **acting(model)[key]):
        raise ZeroDivisionError
    assert torch.equal(model(given), plain) and state(model) == before


@pytest.mark.parametrize(("key", "family"), CHANGING)
def test_at_its_identity_setting_nothing_is_entered(key: str, family: str) -> None:
    model = made(family)
    given = sample(model)
    plain = model(given)
    with METHODS[key](model, given, **IDENTITY[key]):
        assert hooks.in_force() == () and not hooks._PLAN.get() and model.network is model._network
        assert torch.equal(model(given), plain)


LOOKED = {"resnet": (0, 6), "vit": (2, 6), "swin": (4, 6), "gpt2": (0, 4), "gemma2": (2, 4)}
"""Family: which part, of how many, of the pairs of lens and intervention is looked at by default: half of them."""


@pytest.mark.parametrize("family", LOOKED)
def test_every_lens_after_every_intervention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every_lens_after(family, *LOOKED[family], monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", LOOKED)
def test_every_lens_after_every_intervention_on_each_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every_lens_after(family, 0, 1, monkeypatch)


def every_lens_after(family: str, part: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each result is of the changed model, however the captures of the unchanged one are kept, and the other way."""
    monkeypatch.setattr(_replacement, "TEXTS", 2)  # means are taken anew each time, and two texts have one as well
    model = made(family)
    given = sample(model)
    changes = [key for key in INTERVENTIONS if serves(key, model) and key not in ALIKE]
    for row, lens in enumerate(key for key in LENSES if serves(key, model)):
        method, settings = METHODS[lens], LOOKS.get(lens, {})
        model.forget()
        plain = method(model, fitting(method, given), **settings)
        for column, change in enumerate(changes):
            if (row + column) % parts != part:
                continue
            kept = {name: _copied(value) for name, (value, _) in model._cache.items()}
            with METHODS[change](model, given, **acting(model)[change]):
                after = method(model, fitting(method, given), **settings)
            assert after != plain, (change, lens)
            for name, value in kept.items():
                assert name not in model._cache or _equal(model._cache[name][0], value), (change, lens, name)
            model.forget()
            with METHODS[change](model, given, **acting(model)[change]):
                assert method(model, fitting(method, given), **settings) == after, (change, lens)
            assert method(model, fitting(method, given), **settings) == plain, (change, lens)


# ----------------------------------------------------------------------------------------------------- 4: documentation


@pytest.mark.parametrize("key", METHODS)
def test_a_method_says_what_it_does_with_which_assumptions_and_where_it_was_published(key: str) -> None:
    method = METHODS[key]
    assert isinstance(method, Method) and method.key == key == method.function.__name__
    assert method.function.__module__ == f"interp.methods.{method.family}.{key}"
    doc = method.doc
    assert doc.summary.endswith(".") and len(doc.summary) < 300
    assert len(doc.formula) > 8, "the equations"
    for section in ("Returns", "Assumes", "Misleads") if method.kind == "lens" else ("Assumes", "Misleads"):
        assert len(doc.sections.get(section, "")) > 30, section
    for control in method.controls:
        assert len(control.help) > 10 and control.help.endswith("."), control.name
        assert control.kind
    described = {
        line.split(":")[0] for line in doc.sections.get("Args", "").splitlines() if line[:1].strip() and ":" in line
    }
    assert described <= {control.name for control in method.controls}, "describes a setting that it has not"
    paper = method.paper
    assert (
        paper.authors
        and paper.title
        and 1950 <= paper.year <= 2030
        and paper.venue
        and paper.url.startswith("https://")
    )
    assert paper.title in paper.bibtex() and paper.bibtex().count("{") == paper.bibtex().count("}")


@pytest.mark.parametrize("key", METHODS)
def test_the_signature_gives_the_controls(key: str) -> None:
    method = METHODS[key]
    parameters = list(inspect.signature(method.function).parameters.values())
    assert [each.kind for each in parameters[:2]] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters[2:])
    assert parameters[0].name == "model" and method.samples
    call = Call(key)
    assert Call.parse(str(call)) == call and not call.changed and hash(call) == hash(Call(key))
    defaults = method.canonical({})
    assert method.canonical(defaults) == defaults
    if "seed" in defaults:
        assert defaults["seed"] == 0


# -------------------------------------------------------------------------------------------------------- 5: bad input


@pytest.mark.parametrize("key", METHODS)
def test_bad_settings_and_samples_get_a_sentence(key: str) -> None:
    method = METHODS[key]
    model = next(made(family) for family in FAMILIES if serves(key, made(family)))
    for wrong in ("dog.jpg", None, torch.zeros(1, 3, 32, 32), 3):
        with pytest.raises(Unsuitable):
            method(model, wrong)
    with pytest.raises(Unsuitable, match="no setting"):
        method(model, sample(model, 0, method), nonsense=1)
    if method.kind == "fit":
        return
    for control in method.controls:
        for value in (object(), [[[]]], {"a": 1}, float("nan"), float("inf"), -(10**400), "\ud800", 1e308):
            settings = {**(acting(model).get(key, {}) if key in INTERVENTIONS else {}), control.name: value}
            with contextlib.suppress(Unsuitable):
                _ = _used(method, model, settings)
    for control in method.controls:
        if control.kind == "site":
            for site in ("stage.99", "resid_post.99", "z.99", "module:nowhere", "nonsense"):
                with pytest.raises(Unsuitable):
                    _used(method, model, {**(acting(model).get(key, {})), control.name: site})
        if control.kind == "target":
            for target in ("wolf", -1, 10**6, ""):
                with pytest.raises(Unsuitable):
                    _used(method, model, {control.name: target})
        if control.kind == "slider" and control.range:
            for value in (control.range.low - 1, control.range.high + 1):
                with pytest.raises(Unsuitable):
                    _used(method, model, {control.name: value})


def _used(method: Method, model: Any, settings: dict[str, Any]) -> Any:
    used = method(model, sample(model, 0, method), **settings)
    if method.kind != "intervention":
        return used
    with used:
        return model(sample(model))


def test_methods_are_called_from_a_notebook_as_the_functions_they_are() -> None:
    from interp.methods.cam.grad_cam import grad_cam

    assert grad_cam is METHODS["grad_cam"] and grad_cam.__doc__ and "Weigh" in grad_cam.__doc__
    model, picture = tiny.vision("resnet"), tiny.image()
    assert isinstance(picture, Image)
    by_name, by_number = grad_cam(model, picture, target="dog"), grad_cam(model, picture, target=np.int64(1))
    assert by_name == by_number and by_name.target == "dog"
    assert grad_cam(model, picture, site="stage.0").values.shape != by_name.values.shape
