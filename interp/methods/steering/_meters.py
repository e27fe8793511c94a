"""What meters of steering share: continuations written many at once, what changed in them, what ordinary text costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import Unsuitable, directions, hooks
from interp.directions import Direction
from interp.hooks import Here
from interp.methods.change._steering import finite
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet, reference_texts
from interp.sites import Site

TEXTS, CONTEXT = 8, 48
"""How many ordinary texts are read, and at most how many tokens of each: a meter has to follow a slider."""
RARE = 1e-3
"""Tokens that are expected less than this tell little of a behaviour."""
Keep = Literal["nothing", "continuation", "all"]


@dataclass(frozen=True, eq=False)
class Written:
    """Continuations, a row each.

    ids: [row, position], -1 where nothing stands: at the left of a shorter prompt, at the right of a text that ended.
    start: the column at which continuations begin. drawn: [row, step], where a token was drawn, the end included.
    begun: what the first token was drawn from. logits: what all were drawn from, [row, step, token]; where all are
    kept, of every column but the last. stream: of the same columns, after the last layer, where all are kept.
    """

    ids: Int[Tensor, "row position"]
    start: int
    drawn: Bool[Tensor, "row step"]
    begun: Float[Tensor, "row token"]
    logits: Float[Tensor, "row step token"] | None = None
    stream: Float[Tensor, "row column d"] | None = None

    def tokens(self, row: int) -> list[int]:
        """The ids of one continuation."""
        return [each for each in self.ids[row, self.start :].tolist() if each >= 0]

    def after(self, prompt: Int[Tensor, "1 position"]) -> Written:
        """The same continuations behind another prompt."""
        ids = torch.cat([prompt.expand(len(self.ids), -1), self.ids[:, self.start :]], 1)
        return Written(ids, prompt.shape[1], self.drawn, self.begun, self.logits)


@torch.no_grad()
def written(
    model: LanguageModel,
    prompts: Sequence[Prompt | str],
    n: int,
    temperature: float,
    seeds: Sequence[int],
    keep: Keep = "nothing",
) -> Written:
    """Go on with each prompt by `n` tokens under the interventions in force.

    Token for token what `LanguageModel.generate` gives for each prompt and seed alone, unless two tokens are equally
    likely up to rounding.

    Raises:
        Unsuitable: a prompt leaves no room, or numbers overflow.
    """
    from transformers import DynamicCache

    ids = model.inputs(list(prompts))
    start, lengths = ids.shape[1], (ids >= 0).sum(1)
    if start >= model.limit:
        raise Unsuitable(f"The prompt fills the {model.limit} tokens that {model.name} reads; shorten it.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    end = getattr(model.tokenizer, "eos_token_id", None)
    cached = not hooks.has_around(model.owner)
    cache = DynamicCache() if cached else None
    last = Site("resid_post", model.layers - 1)
    scratch, new, going = dict[object, object](), ids, torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    drawn: list[Tensor] = []
    logits: list[Tensor] = []
    streams: list[Tensor] = []
    begun = torch.empty(0)
    for step in range(n):
        going = going & (lengths + step < model.limit)
        if not bool(going.any()):
            break
        whole = keep == "all" and step == 0
        with model.record([last] if keep == "all" else []) as found:
            out = model._forward(new, cache, Here(prompt=start, scratch=scratch), 0 if whole else 1, ids >= 0)
        if step == 0:
            begun = out[:, -1]
        if keep != "nothing":
            logits.append(out if whole else out[:, -1:])
        if keep == "all":
            streams.append(found[last] if whole else found[last][:, -1:])
        latest = finite(out[:, -1].float().cpu())
        if temperature > 0:
            chances = (latest / temperature).softmax(1)
            drawing = zip(chances, generators, strict=True)
            choice = torch.cat([torch.multinomial(row, 1, generator=each) for row, each in drawing])
        else:
            choice = latest.argmax(1)
        choice = choice.to(ids)
        drawn.append(going)
        if end is not None:
            going = going & (choice != end)
        # what has ended goes on as padding, which no one attends to and no intervention changes
        ids = torch.cat([ids, torch.where(going, choice, -1).unsqueeze(1)], 1)
        new = ids[:, -1:] if cached else ids
    return Written(
        ids, start, torch.stack(drawn, 1), begun, torch.cat(logits, 1) if logits else None,
        torch.cat(streams, 1) if streams else None,
    )  # fmt: skip


def continued(model: LanguageModel, sample: Prompt, n: int, temperature: float, seed: int) -> Written:
    """One continuation under the interventions in force, with all that is kept of it."""
    return model.cached(
        ("continued", sample.text, n, temperature, seed),
        lambda: written(model, [sample], n, temperature, [seed], "all"),
    )


@torch.no_grad()
def read(
    model: LanguageModel, own: Written, layers: Sequence[int], keep: Keep
) -> tuple[Float[Tensor, "row step token"], list[Float[Tensor, "row position d"]]]:
    """What the unchanged model makes of texts: logits as `Written.logits` holds them, and streams after layers."""
    sites = [Site("resid_post", layer) for layer in layers]
    kept = {"nothing": 1, "continuation": own.ids.shape[1] - own.start + 1, "all": 0}[keep]
    with hooks.alone(), model.record(sorted(set(sites), key=str)) as found:
        logits = model._forward(own.ids, None, Here(prompt=own.start), kept)
    return logits[:, :-1], [found[site] for site in sites]


def divergence(plain: Float[Tensor, "*batch token"], changed: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch"]:
    """KL(plain || changed) = sum_v p_v (log p_v - log q_v), in nats."""
    parts = []
    # a few at a time, as these are several copies of all logits in double precision
    for pair in zip(*(each.flatten(0, -2).split(64) for each in (plain, changed)), strict=True):
        p, q = (each.double().log_softmax(-1) for each in pair)
        parts.append(torch.where(p > -torch.inf, p.exp() * (p - q), 0).sum(-1).clamp(min=0))
    return torch.cat(parts).view(plain.shape[:-1])


def mean_divergence(model: LanguageModel, own: Written) -> Float[Tensor, row]:
    """KL(plain || changed) of each continuation, over the distributions that its tokens were drawn from."""
    assert own.logits is not None
    plain, _ = read(model, own, (), "continuation")
    each = divergence(plain, own.logits[:, -plain.shape[1] :])
    return torch.where(own.drawn, each, 0).sum(1) / own.drawn.sum(1)


# --------------------------------------------------------------------------------------------------- texts as they are


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """The share of runs of n tokens that stood in the text before; 0 where it is shorter."""
    return 1 - distinct(tokens, n)


def distinct(tokens: Sequence[int], n: int) -> float:
    """Different runs of n tokens over all of them; 1 where it is shorter."""
    runs = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return len(set(runs)) / len(runs) if runs else 1.0


@dataclass(frozen=True)
class Judge:
    """What scores a behaviour: a direction after a layer.

    whole: it was made of means over texts, so it reads the continuation. Otherwise it was made of the last tokens of
    texts, where the model is about to go on, and it tells what is expected there.
    """

    direction: Direction
    layer: int
    whole: bool

    def scores(self, model: LanguageModel, sample: Prompt, own: Written) -> Float[Tensor, row]:
        """Behaviour score of each continuation of the prompt, 0 as in the negative examples, 1 as in the positive ones.

        Neither reads the stream of the changed model, where a push would be its own effect. A continuation is scored by
        the direction as the unchanged model reads it. What the changed model expects next, q, lies between what the
        unchanged one does where its last token is held at a score of 0, p_0, and at 1, p_1:

            (sum_x q w - sum_x p_0 w) / (sum_x p_1 w - sum_x p_0 w),    w = max(p_1 - p_0, 0) / (p_1 + p_0 + 0.001)

        so that broken text, which neither expects, does not count as showing it.
        """
        if self.whole:
            _, (stream,) = read(model, own, (self.layer,), "nothing")
            values = self.direction.score(stream[:, own.start - 1 :].double(), self.layer)
            said = own.ids[:, own.start :] >= 0
            count = said.sum(1)
            mean = torch.where(said, values[:, 1:], 0).sum(1) / count.clamp(min=1)
            return torch.where(count > 0, mean, values[:, 0])
        with hooks.alone():
            key = ("held at scores", self.direction.key, self.layer, sample.text)
            low, high = model.cached(key, lambda: self._held(model, sample))
        w = (high - low).clamp(min=0) / (high + low + RARE)
        bottom, top = low @ w, high @ w
        return (own.begun.double().softmax(1) @ w - bottom) / (top - bottom).clamp(min=1e-12)

    @torch.no_grad()
    def _held(self, model: LanguageModel, sample: Prompt) -> tuple[Tensor, Tensor]:
        """What the unchanged model expects next if the last token has a score of 0, and of 1."""
        v = self.direction.at(self.layer).to(model.device)
        levels = torch.tensor([self.direction.fact(each, self.layer) for each in ("low", "high")], device=model.device)

        def hold(h: Tensor) -> Tensor:
            last = h[:, -1]
            held = last + ((levels.to(h) - last @ v.to(h) / v.to(h).dot(v.to(h))).unsqueeze(1) * v.to(h))
            return torch.cat([h[:, :-1], held.unsqueeze(1)], 1)

        ids = model.inputs(sample).expand(2, -1)
        with model.edit({self.direction.site(self.layer): hold}):
            low, high = model(ids, keep=1)[:, -1].double().softmax(1)
        return low, high


def judge(model: LanguageModel, name: str, layer: int | None) -> Judge | None:
    """What scores texts by that direction; None where none is named and the model's first, if any, gives no score.

    Raises:
        Unsuitable: the one that is named does not fit, is not known after that layer, or knows no examples.
    """
    if not name and not directions.available(model):
        return None
    found = directions.load(name, model)
    whole = found.about.get("token") == "mean"
    at = layer if layer is not None else found.best if whole else max(found.layers)
    found.at(at)
    if not abs(found.fact("high", at) - found.fact("low", at)) > 0:
        if not name:
            return None
        raise Unsuitable(f"{found.name} knows no examples, so it gives no score; fit it on texts.")
    return Judge(found, at, whole)


# ------------------------------------------------------------------------------------------------------- ordinary text


@dataclass(frozen=True, eq=False)
class Ordinary:
    """Texts as token ids, padded at the left with -1; which of them count; and the column where each is half over."""

    ids: Int[Tensor, "text position"]
    counted: Bool[Tensor, "text position"]
    half: int


def ordinary(model: LanguageModel, texts: TextSet | None, before: str = "") -> Ordinary:
    """The first few texts, the embedded ones unless given; `before` each stands a text that does not count.

    Raises:
        Unsuitable: none of them has two tokens.
    """
    rows, counts = [], []
    lead = len(model.tokenizer(before)["input_ids"]) if before else 0
    for text in (reference_texts() if texts is None else texts).texts[:TEXTS]:
        own = model.tokenizer(text)["input_ids"]
        kept = min(len(own), CONTEXT, model.limit - lead)
        ids = model.tokenizer(before + text)["input_ids"] if before else own
        ids = ids[: len(ids) - len(own) + kept]
        if kept >= 2:
            rows.append(ids)
            counts.append(kept - 1)  # nothing is expected of the first
    if not rows:
        raise Unsuitable("Perplexity needs a text of two tokens or more; give longer ones.")
    longest = max(map(len, rows))
    ids = torch.tensor([[-1] * (longest - len(each)) + each for each in rows], device=model.device)
    column = torch.arange(longest, device=model.device)
    counted = column >= longest - torch.tensor(counts, device=model.device).unsqueeze(1)
    return Ordinary(ids, counted, longest - (max(counts) + 1) // 2)


@torch.no_grad()
def perplexities(model: LanguageModel, own: Ordinary, variants: int = 1) -> Float[Tensor, variant]:
    """exp of the mean surprise of all tokens that count, under the interventions in force.

    The first half of each text stands for a prompt and the second for what is written after it, so that what acts on
    either alone is seen. variants: so many copies of all texts, one after another, in one batch.
    """
    ids = own.ids.repeat(variants, 1)
    logits = finite(model._forward(ids, None, Here(prompt=own.half))[:, :-1].float())
    chosen = logits.log_softmax(2).gather(2, ids[:, 1:].clamp(min=0).unsqueeze(2)).squeeze(2).double()
    surprise = -chosen.view(variants, *own.counted[:, 1:].shape) * own.counted[:, 1:]
    # beyond this a float holds no exponential, and nothing is left to tell
    return (surprise.sum((1, 2)) / own.counted.sum()).clamp(max=600).exp()


def perplexity(model: LanguageModel, texts: TextSet | None, before: str = "") -> float:
    """Perplexity of ordinary text under the interventions in force."""
    return model.cached(
        ("perplexity", texts, before), lambda: float(perplexities(model, ordinary(model, texts, before))[0])
    )


def random_like(v: Float[Tensor, d], count: int, seed: int) -> Float[Tensor, "count d"]:
    """Directions drawn at random, each as long as v."""
    drawn = torch.randn(count, len(v), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(v)
    return drawn * (v.norm() / drawn.norm(dim=1, keepdim=True))
