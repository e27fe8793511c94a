"""Handles on networks: padding, generation, captures, targets, grids, digests; every language family."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from torch import Tensor

from interp import Unsuitable, hooks, model, progress
from interp.hooks import here
from interp.methods import METHODS
from interp.model import LanguageModel, VisionModel
from interp.samples import Image, Prompt, Target
from interp.sites import Site
from interp.zoo import LANGUAGE
from tests import tiny
from tests.test_hooks import IDS, _check_sites, near

MORE: dict[str, Callable[[], Any]] = {
    "opt_post_norm": lambda: _changed(tiny.LANGUAGE["opt"](), do_layer_norm_before=False),
    "neox_serial": lambda: _changed(tiny.LANGUAGE["gpt_neox"](), use_parallel_residual=False),
    "mistral_sliding": lambda: T.MistralConfig(sliding_window=3, **tiny.LLAMA),
    "gpt2_upcast": lambda: _changed(tiny.LANGUAGE["gpt2"](), scale_attn_by_inverse_layer_idx=True),
}
FAMILIES = [*tiny.LANGUAGE, *(family for family in MORE if family not in tiny.LANGUAGE)]
REFUSED = {
    # attention and MLP both read the block's input, so nothing lies between them
    "gpt_neox": {"resid_mid"},
    # its norms come after the sums
    "opt_post_norm": {"attn_out", "resid_mid", "mlp_out"},
    # a mixture of experts has no one hidden layer
    "mixtral": {"mlp_post"},
}


def _changed(config: Any, **settings: Any) -> Any:
    for name, value in settings.items():
        setattr(config, name, value)
    return config


_made: dict[str, LanguageModel] = {}


def language(family: str) -> LanguageModel:
    if family in tiny.LANGUAGE:
        return tiny.language(family)
    if family not in _made:
        network = tiny._make(T.AutoModelForCausalLM, MORE[family](), 0)
        _made[family] = LanguageModel(network, tiny.tokenizer(), family)
    return _made[family]


# --------------------------------------------------------------------------------------------------- language families


def test_every_family_of_the_zoo_is_tested() -> None:
    assert set(LANGUAGE) <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_language_family_serves_its_sites_or_says_why_not(family: str) -> None:
    subject = language(family)
    _check_sites(subject, IDS)
    kinds = {"q", "k", "v", "pattern", "z", "resid_pre", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"}
    served = {site.kind for site in subject.sites() if site.layer == 2}
    assert kinds - served == REFUSED.get(family, set())
    for kind in kinds - served:
        reason = subject.refuses(Site(kind, 0))
        assert reason and ":" in reason and reason.endswith("."), reason
        with pytest.raises(Unsuitable, match="no site"):
            subject.record([f"{kind}.0"])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_to_the_residual_stream_adds_up(family: str) -> None:
    subject = language(family)
    with subject.record(subject.sites()) as recorded:
        subject(IDS)
    for layer in range(subject.layers):
        get = lambda kind, layer=layer: recorded[f"{kind}.{layer}"]  # noqa: E731
        if family in REFUSED and "attn_out" in REFUSED[family]:
            continue
        near(get("resid_pre") + get("attn_out") + get("mlp_out"), get("resid_post"), 1e-5)
        if family != "gpt_neox":
            near(get("resid_pre") + get("attn_out"), get("resid_mid"))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_recorded_as_it_is_used(family: str) -> None:
    """z is the pattern times v, and the pattern the softmax of q k, grouped heads and rotary positions included."""
    subject = language(family)
    with subject.record(["q.1", "k.1", "v.1", "pattern.1", "z.1"]) as recorded:
        subject(IDS)
    q, k, v, pattern, z = (recorded[f"{kind}.1"] for kind in ("q", "k", "v", "pattern", "z"))
    shared = subject.parts.heads // subject.parts.kv_heads
    assert k.shape[2] == subject.parts.kv_heads and q.shape[2] == subject.parts.heads
    k, v = k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2)
    near(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    near(z, torch.einsum("bhqk,bkhd->bqhd", pattern, v))
    assert not pattern.triu(1).any()
    scale = {"gemma2": 256**-0.5, "gemma3_text": 256**-0.5, "gpt2_upcast": 0.5 * q.shape[-1] ** -0.5}
    # OPT's q carries its scale already
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (
        1 if family.startswith("opt") else scale.get(family, q.shape[-1] ** -0.5)
    )
    if family == "gemma2":
        scores = 50 * torch.tanh(scores / 50)
    seen = torch.ones(6, 6).tril().bool()
    window = {"mistral_sliding": 3, "gemma3_text": 4}.get(family)
    if window:
        seen &= ~torch.ones(6, 6).tril(-window).bool()
    near(pattern, scores.masked_fill(~seen, -torch.inf).softmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_nothing_and_is_never_edited(family: str) -> None:
    subject = language(family)
    padded = torch.cat([torch.full((2, 3), -1), IDS], 1)
    padded[1] = torch.arange(9)  # one row without padding beside one with
    plain, other = subject(IDS[:1]), subject(padded[1:])

    def compare(*blocks: Callable[[], Any]) -> None:
        with contextlib.ExitStack() as stack:
            for block in blocks:
                stack.enter_context(block())
            alone, beside, both = subject(IDS[:1]), subject(padded[1:]), subject(padded)
        near(both[0, 3:], alone[0], 5e-4)
        near(both[1], beside[0], 5e-4)

    compare()
    near(subject(padded)[0, 3:], plain[0], 5e-4)
    for site in subject.sites():
        if site.layer in (None, 1):
            seen: list[Tensor] = []
            compare(lambda site=site: subject.edit({site: lambda x: x * 1.5 + 0.1}))
            edit = {site: lambda x: x * torch.nan}
            with subject.record([site], every=True) as recorded:
                subject(padded)
                with subject.edit(edit):
                    subject(padded)
            before, after = recorded[site]
            axis = 2 if site.kind == "pattern" else 1
            padding = [each.movedim(axis, 1)[0, :3] for each in (before, after)]
            assert torch.equal(padding[0], padding[1]) and not seen, site
            assert after.isnan().any()
    near(subject(padded)[1], other[0], 5e-4)


def test_padding_keys_never_get_attention_from_an_edit() -> None:
    subject = tiny.language("llama")
    padded = torch.cat([torch.full((1, 2), -1), IDS[:1]], 1)
    with subject.edit({"pattern.1": lambda x: torch.ones_like(x)}), subject.record(["pattern.1"]) as recorded:
        logits = subject(padded)
    assert not recorded["pattern.1"][:, :, 2:, :2].any()
    with subject.edit({"pattern.1": lambda x: torch.ones_like(x)}):
        near(logits[:, 2:], subject(IDS[:1]))


def test_positions_are_absolute_in_padded_batches() -> None:
    subject = tiny.language("gpt2")
    seen = []

    def look(x: Tensor) -> Tensor:
        now = here()
        assert now.positions is not None and now.generated is not None
        seen.append((now.positions.tolist(), now.prompt, now.generated.tolist()))
        return x

    with subject.edit({"resid_pre.0": look}):
        subject(torch.tensor([[-1, -1, 5, 6], [1, 2, 3, 4]]))
    assert seen == [([[-1, -1, 0, 1], [0, 1, 2, 3]], 4, [[False, False, False, True], [False, False, False, True]])]


def test_prompts_are_padded_at_the_left_and_checked() -> None:
    subject = tiny.language("gpt2")
    ids = subject.inputs(["abc", Prompt("a")])
    assert ids.tolist() == [subject.tokenizer("abc")["input_ids"], [-1, -1, *subject.tokenizer("a")["input_ids"]]]
    near(subject(["abc", "a"])[1, 2:], subject("a")[0])
    near(subject("abc", keep=1)[:, 0], subject("abc")[:, -1])
    for wrong in ("", ["", ""], "x" * 129, IDS.repeat(1, 30)):
        with pytest.raises(Unsuitable):
            subject(wrong)


def test_tokens_join_to_the_text() -> None:
    subject = tiny.language("gpt2")
    for text in ("Hello, world", "a  b\n\tc", "naïve 日本 🦊!", "🦊"):
        tokens = subject.tokens(text)
        assert "".join(tokens) == text and len(tokens) == subject.inputs(text).shape[1]
    assert subject.tokens("é") == ["", "é"]


# ---------------------------------------------------------------------------------------------------------- generation


class Spelled:
    """A tokenizer that spells every token, where bytes that make no character would look the same."""

    eos_token_id = None

    def __call__(self, text: str, **_: Any) -> Any:
        return tiny.tokenizer()(text)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"<{each}>" for each in ids)


def spelled(family: str) -> LanguageModel:
    return LanguageModel(language(family).network, Spelled())


def _greedy(subject: LanguageModel, prompt: str, n: int) -> str:
    ids = subject.inputs(prompt)
    length = ids.shape[1]
    for _ in range(n):
        token = subject(ids)[0, -1].argmax()
        if int(token) == subject.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token.view(1, 1)], 1)
    return str(subject.tokenizer.decode(ids[0, length:].tolist()))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_recomputing_everything(family: str) -> None:
    subject = spelled(family)
    expected = _greedy(subject, "Once upon", 12)
    assert "".join(subject.generate("Once upon", 12)) == expected
    assert "".join(subject.generate("Once upon", 12, cache=False)) == expected
    for site in subject.sites():
        if site.layer in (None, 1):
            with subject.edit({site: lambda x: x * 2}):
                expected = _greedy(subject, "Once upon", 8)
                assert "".join(subject.generate("Once upon", 8)) == expected, site


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "mistral_sliding"])
@pytest.mark.parametrize("site", ["resid_post.1", "k.1", "v.1", "q.1", "z.1", "pattern.1", "input"])
def test_an_edit_stays_on_a_position_once_made(family: str, site: str) -> None:
    """Steering from the last prompt token on, with and without cache."""
    subject = spelled(family)
    length = subject.inputs("Once upon").shape[1]
    seen: list[list[list[int]]] = []
    streaming = True

    def steer(x: Tensor) -> Tensor:
        now = here()
        assert now.positions is not None and now.keys is not None and now.generated is not None
        if site == "resid_post.1" and streaming:
            seen.append(now.positions.tolist())
            assert torch.equal(now.generated, now.positions >= now.prompt - 1) and now.prompt == length
        positions = now.keys if site in ("k.1", "v.1") else now.positions
        axis = 2 if site == "pattern.1" else 1
        shape = [1] * x.dim()
        shape[axis] = -1
        return torch.where((positions >= length - 1).view(shape), x * -2 if axis == 1 else x.flip(1), x)

    with subject.edit({site: steer}):
        cached = list(subject.generate("Once upon", 10))
        seen.clear()
        assert list(subject.generate("Once upon", 10, cache=False)) == cached
        if seen:
            assert seen[-1] == [list(range(length + len(seen) - 1))]
        streaming = False
        assert "".join(cached) == _greedy(subject, "Once upon", 10)
    if site in ("resid_post.1", "v.1", "input"):
        assert "".join(cached) != "".join(subject.generate("Once upon", 10))


def test_scratch_lives_for_one_generation() -> None:
    subject = spelled("gpt2")
    counts: list[int] = []

    def count(x: Tensor) -> Tensor:
        scratch = here().scratch
        scratch["seen"] = scratch.get("seen", 0) + 1
        counts.append(scratch["seen"])
        return x

    with subject.edit({"resid_pre.0": count}):
        first, second = subject.generate("ab", 3), subject.generate("ab", 3)
        next(first), next(second), next(first), next(second)
        subject("ab")
    assert counts == [1, 1, 2, 2, 1]


def test_interleaved_streams_each_equal_themselves_alone_and_leak_nothing() -> None:
    subject = spelled("llama")
    prompt = "The cat"
    weight = "model.layers.1.mlp.up_proj.weight"

    def steered() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(subject.edit({"resid_post.1": lambda x: -x}))
        stack.enter_context(subject.swap({weight: subject.weight(weight) * 3}))
        stack.enter_context(subject.around({0: lambda run, x: x}))
        return stack

    plain_alone = list(subject.generate(prompt, 12, temperature=1.0, seed=1))
    with steered():
        steered_alone = list(subject.generate(prompt, 12, temperature=1.0, seed=1))
    assert plain_alone != steered_alone
    plain = subject.generate(prompt, 12, temperature=1.0, seed=1)
    with steered():
        other = subject.generate(prompt, 12, temperature=1.0, seed=1)  # keeps the plan of this call ...
    results: tuple[list[str], list[str]] = ([], [])
    reference = subject(IDS)
    for index in range(12):
        for stream, pieces in zip((plain, other), results, strict=True):
            around = subject.edit({"resid_post.0": lambda x: x * 0}) if index % 2 else contextlib.nullcontext()
            with around, contextlib.suppress(StopIteration):
                pieces.append(next(stream))
        assert torch.equal(subject(IDS), reference) and hooks.in_force() == ()
    assert results == (plain_alone, steered_alone)
    with steered():  # a stream that is dropped half-way leaves nothing either
        half = subject.generate(prompt, 12)
        next(half)
        half.close()
    assert torch.equal(subject(IDS), reference)


def test_generation_draws_from_its_own_generator() -> None:
    subject = tiny.language("gpt2")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = list(subject.generate("ab", 10, temperature=1.0, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == list(subject.generate("ab", 10, temperature=1.0, seed=3))
    assert first != list(subject.generate("ab", 10, temperature=1.0, seed=4))


def test_generation_stops_at_the_end_of_the_context_and_when_cancelled() -> None:
    subject = tiny.language("gpt2")
    assert sum(1 for _ in subject.generate("x" * 120, 100)) <= 8
    cancel = threading.Event()
    with progress.watch(cancel=cancel):
        stream = subject.generate("ab", 50)
        next(stream)
        cancel.set()
        with pytest.raises(progress.Cancelled):
            list(stream)
    assert subject("ab").shape == (1, 2, 258)


def test_a_stream_gives_whole_characters_and_nothing_is_lost() -> None:
    subject = tiny.language("gpt2")
    for seed in range(5):
        pieces = list(subject.generate("é", 40, temperature=3.0, seed=seed))
        whole = "".join(pieces)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])
        again = "".join(subject.generate("é", 40, temperature=3.0, seed=seed, cache=False))
        assert whole == again


# ------------------------------------------------------------------------------------------------------------ captures


def test_captures_are_reused_under_the_same_calls_only() -> None:
    subject, picture = tiny.vision("resnet"), tiny.image()
    subject.forget()
    made: list[int] = []

    def ask() -> int:
        return subject.cached("key", lambda: made.append(1) or len(made))  # type: ignore[func-returns-value]

    ablate = METHODS["ablate_channels"]
    assert ask() == ask() == 1
    with subject.edit({"stage.0": lambda x: x}):
        assert ask() == 2 and ask() == 3
    with subject.swap({}):
        assert ask() == 4 and ask() == 5
    with ablate(subject, picture, channels=(1,)):
        assert ask() == ask() == 6
        with ablate(subject, picture, channels=(2,)):
            assert ask() == ask() == 7
            with subject.edit({"stage.0": lambda x: x}):
                assert ask() == 8 and ask() == 9
    with ablate(subject, picture, channels=(2,)):
        assert ask() == 10
    with ablate(subject, tiny.image(1), channels=(1,)):  # the sample belongs to the intervention
        assert ask() == 11
    with ablate(subject, picture, channels=(1,)):
        assert ask() == 6
    with ablate(subject, picture, channels=()):
        assert ask() == 1
    assert ask() == 1
    subject.forget()
    assert ask() == 12


def test_captures_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny.vision("resnet")
    subject.forget()
    monkeypatch.setattr(model, "CACHE_BYTES", 10_000)
    for index in range(20):
        subject.cached(index, lambda: (torch.zeros(250), {"a": np.zeros(125)}))
        assert sum(size for _, size in subject._cache.values()) <= 10_000
    assert len(subject._cache) == 5
    subject.cached(15, lambda: pytest.fail("the latest are kept"))
    subject.cached("huge", lambda: torch.zeros(1_000_000))
    assert sum(size for _, size in subject._cache.values()) <= 10_000
    subject.forget()


def test_no_one_can_change_what_is_kept_of_the_pixels() -> None:
    subject, picture = tiny.vision("vit"), tiny.image()
    plain = subject(picture)
    subject.inputs(picture).mul_(0)
    with pytest.raises(RuntimeError, match="in place"), subject.edit({"input": lambda x: x.zero_()}):
        subject(picture)
    assert torch.equal(subject(picture), plain)


# -------------------------------------------------------------------------------------------------------------- models


def test_the_digest_names_weights_and_architecture() -> None:
    subject = tiny.language("gpt2")
    same = LanguageModel(copy.deepcopy(subject._network), subject.tokenizer)
    assert same.digest == subject.digest
    with subject.swap({"lm_head.weight": subject.weight("lm_head.weight") * 2}):
        assert LanguageModel(copy.deepcopy(subject._network), None).digest == subject.digest
    digests = {subject.digest}
    for change in ("n_head", "activation_function", "layer_norm_epsilon"):
        other = copy.deepcopy(subject._network)
        setattr(other.config, change, {"n_head": 4, "activation_function": "relu", "layer_norm_epsilon": 1e-3}[change])
        digests.add(LanguageModel(other, None).digest)
    bit = copy.deepcopy(subject._network)
    with torch.no_grad():
        bit.transformer.ln_f.bias[0] += 1e-6
    digests.add(LanguageModel(bit, None).digest)
    assert len(digests) == 5


def test_names_of_transformer_lens_mean_what_they_mean_or_are_refused() -> None:
    gpt2, llama = tiny.language("gpt2"), tiny.language("llama")
    assert gpt2.resolve("blocks.1.attn.hook_q") == Site("q", 1) and llama.resolve("blocks.1.attn.hook_rot_k") == Site(
        "k", 1
    )
    for subject, name in (
        (gpt2, "blocks.1.attn.hook_rot_q"),
        (llama, "blocks.1.attn.hook_q"),
        (llama, "blocks.1.attn.hook_k"),
    ):
        with pytest.raises(Unsuitable, match="rotary"):
            subject.resolve(name)


def test_sites_that_are_not_there_are_refused_with_a_sentence() -> None:
    subject, vision = tiny.language("llama"), tiny.vision("resnet")
    for handle, name in (
        (subject, "resid_post.3"), (subject, "stage.0"), (subject, "z.0.4"), (subject, "k.0.2"),
        (subject, "module:nowhere"), (subject, "module:model.layers.0:out"), (vision, "stage.2"),
        (vision, "resid_post.0"), (vision, "pattern.0"), (vision, "nonsense"),
    ):  # fmt: skip
        with pytest.raises(Unsuitable) as reason:
            handle.resolve(name)
        assert str(reason.value).endswith((".", "PATH.")) and len(str(reason.value)) < 250
    assert vision.refuses(Site("stage", 1)) is None and vision.refuses(Site("stage", 9))


@pytest.mark.parametrize("family", tiny.VISION)
def test_grids_put_tokens_where_their_patches_are(family: str) -> None:
    """A change of one corner of the input shows in that corner of the map."""
    subject = tiny.vision(family)
    pixels = subject.inputs(tiny.image())
    for site in subject.spatial_sites():
        maps = subject.grid(site)
        with subject.record([site], every=True) as recorded:
            subject(pixels)
            corner = pixels.clone()
            corner[:, :, : pixels.shape[2] // 8, -pixels.shape[3] // 8 :] += 3
            subject(corner)
        before, after = (maps(each) for each in recorded[site])
        change = (after - before).abs().sum(1)[0]
        height, width = change.shape
        if height >= 4 and site in subject.spatial_sites()[:2]:
            row, column = divmod(int(change.argmax()), width)
            assert row < height / 2 and column >= width / 2, (site, row, column)
    with pytest.raises(Unsuitable):
        subject.grid("stage.99" if subject.parts.stages else "resid_pre.99")


def test_targets_are_found_by_name_number_or_first_guess() -> None:
    subject = tiny.vision("resnet")
    logits = subject(tiny.image())
    assert subject.class_index(Target("Dog ")) == 1 and subject.class_index(Target(2)) == 2
    assert subject.class_index(Target(), logits) == int(logits.argmax())
    for wrong in ("wolf", "", 3, -1):
        with pytest.raises(Unsuitable):
            subject.class_index(Target(wrong))
    text = tiny.language("gpt2")
    assert text.token_index(Target("a")) == text.tokenizer("a")["input_ids"][0] and text.token_index(Target(7)) == 7
    for wrong in ("ab", "", 258, -1):
        with pytest.raises(Unsuitable):
            text.token_index(Target(wrong))


def test_several_images_and_pixels_give_the_same_logits() -> None:
    subject = tiny.vision("convnext")
    pictures = [tiny.image(seed) for seed in range(3)]
    alone = torch.cat([subject(each) for each in pictures])
    near(subject(pictures), alone)
    near(subject(torch.cat([subject.inputs(each) for each in pictures])), alone)


def test_forwards_are_counted_in_examples() -> None:
    subject = tiny.vision("resnet")
    with progress.meter() as spent:
        subject([tiny.image(0), tiny.image(1)])
        with subject.record(["stage.0"], grad=True) as recorded:
            logits = subject(tiny.image())
        model.gradient(logits[0, 0], [recorded["stage.0"]])
    assert (spent.forwards, spent.backwards) == (3, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    subject = tiny.vision("vit", dtype)
    logits = subject(tiny.image())
    assert logits.dtype == dtype and subject.dtype == dtype
    near(logits.float(), tiny.vision("vit")(tiny.image()), 0.2 if dtype == torch.bfloat16 else 1e-4)
    with subject.edit({"resid_post.1": lambda x: x.double() * 2}):
        assert subject(tiny.image()).dtype == dtype


def test_a_vision_model_reads_labels_from_its_network() -> None:
    assert tiny.vision("vit").labels == tiny.CLASSES
    assert isinstance(tiny.vision("vit"), VisionModel) and isinstance(tiny.image(), Image)
