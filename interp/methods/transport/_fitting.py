"""Fitting transport operators: two passes over texts in shards, one to fit on, one over other documents to judge on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import Unsuitable, hooks, progress, sae, store
from interp import transport as kept
from interp.batch import Arrays, Origin, run
from interp.model import LanguageModel
from interp.sae import SAE
from interp.samples import TextSet
from interp.sites import Site
from interp.texts import CHARACTERS, Texts, Windows
from interp.transport import PENALTIES, QUANTITIES, TOLERANCE, Policy, covered
from kernels.held_out import BLOCKS, CONFIDENCE, HeldOut, offsets
from kernels.linear_maps import Factor, canonical, held_out_errors, ridge
from kernels.moments import Moments

BATCH = 32
"""Windows that run together."""
SHARDS, SHARD_BYTES = 16, 2**32
"""A pass is cut into so many shards at most, or fewer where all of them would take more than that on the disk."""
FEATURE_BLOCKS, FEATURE_ROUNDS, RAREST = 20, 200, 20
"""Features that fire on fewer held-out tokens than the last get no numbers."""
FIRES = 1e-6
Array = np.ndarray


def part_of(document: int, seed: int) -> int:
    """Of every five documents in a row three are fitted on (0), one chooses penalties (1), one judges (2)."""
    order = np.random.default_rng((seed, document // 5)).permutation(5)
    return (0, 0, 0, 1, 2)[int(order[document % 5])]


@dataclass(frozen=True)
class Reading:
    """What is read: which texts, at which streams, and from which tokens a source is taken."""

    origin: Origin
    data: TextSet | Any
    title: str
    streams: tuple[str, ...]
    policy: Policy
    context: int
    seed: int
    precise: bool

    @cached_property
    def texts(self) -> Texts:
        return Texts(self.data, self.title, CHARACTERS)

    def cut(self, bytes_each: int) -> list[tuple[int, int]]:
        """Runs of groups of documents, one for each shard."""
        groups = len(self.texts)
        count = max(min(groups, SHARDS, SHARD_BYTES // max(bytes_each, 1)), 1)
        ends = [groups * each // count for each in range(count + 1)]
        return list(itertools.pairwise(ends))

    def rows(
        self, model: LanguageModel, between: tuple[int, int], part: int
    ) -> Iterator[tuple[Float[Tensor, "variable row d"], Int[Array, row]]]:
        """The variables at the tokens of that part, a batch at a time, and the documents that the tokens are of."""
        sites = [Site.parse(each) for each in self.streams]
        patterns = [Site("pattern", each.layer if each.kind == "resid_pre" else (each.layer or 0) + 1)
                    for each in sites[:-1]] if self.policy == "attention" else []  # fmt: skip
        for group in itertools.islice(self.texts.groups(), *between):
            chosen = [each for each in group if part_of(each[0], self.seed) == part]
            windows = Windows.of(model, chosen, self.context)
            for ids, number in windows.batches(BATCH):
                with torch.no_grad(), hooks.alone(), model.record([*sites, *patterns]) as found:
                    model(ids.to(model.device), keep=1)
                x = torch.stack([found[each] for each in sites]).to(torch.float64 if self.precise else torch.float32)
                good = number >= 0
                if self.policy != "same":
                    good[:, 1:] &= number[:, :-1] >= 0
                    good[:, 0] = False
                if self.policy == "previous":
                    x = torch.cat([x, x[:-1].roll(1, 2)])
                elif self.policy == "attention":
                    x = torch.cat([x, torch.stack(
                        [found[each].to(x).mean(1) @ one for each, one in zip(patterns, x[:-1], strict=True)]
                    )])  # fmt: skip
                if good.any():
                    yield x[:, torch.from_numpy(good).to(x.device)], windows.document[number[good]]


# ------------------------------------------------------------------------------------------------------ the first pass


@dataclass(frozen=True)
class Fitting:
    """Moments of the streams over the documents that are fitted on and over those that choose penalties."""

    reading: Reading
    width: int

    @property
    def key(self) -> str:
        return store.key_of("transport moments", kept.VERSION, *_identity(self.reading))

    @property
    def name(self) -> str:
        return f"reading {self.reading.texts.name}"

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return covered(len(self.reading.streams), self.reading.policy)[1]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        return self.reading.cut(16 * len(self.pairs) * self.width**2)

    def shards(self) -> int:
        return len(self.runs)

    def shard(self, number: int) -> Arrays:
        model = self.reading.origin.load()
        out: Arrays = {}
        for part, name in enumerate(("fit", "choose")):
            moments = Moments(self.pairs)
            for x, _ in self.reading.rows(model, self.runs[number], part):
                moments.add(x)
            out |= {f"{name}.{key}": each for key, each in moments.state().items()}
        return out

    def joined(self, parts: Iterator[Arrays]) -> tuple[Moments, Moments]:
        whole = Moments(self.pairs), Moments(self.pairs)
        for part in parts:
            for mine, name in zip(whole, ("fit", "choose"), strict=True):
                mine.merge(Moments(self.pairs).load(_under(name, part)))
        return whole


def solved(
    fit: Moments, choose: Moments, streams: int, policy: Policy, targets: Sequence[int] = ()
) -> tuple[Float[Array, "S S"], Arrays]:
    """Penalties [source, target], and what the second pass judges: by pair T, xs, ys, rho and how many of these count.

    targets: streams that are read backwards too, from later ones. fit takes in `choose` when the penalties are known.
    """
    ordered = [(a, b) for a in range(streams) for b in range(streams) if a < b or (a > b and b in targets)]
    variable = (lambda a: a) if policy == "same" else (lambda a: streams + a)
    d = fit.sums.shape[1]
    penalties = np.full((streams, streams), np.nan)
    factors = {each: Factor.of(fit.covariance(each, each), TOLERANCE) for each, other in fit.pairs if each == other}
    moved = choose.shift + choose.sums / choose.n - fit.shift - fit.sums / fit.n
    moment = lambda i, j: choose.covariance(i, j) + torch.outer(moved[i], moved[j])  # noqa: E731
    precisions = {b: factors[b].precision for b in {b for _, b in ordered}}
    totals = {b: float((each * moment(b, b)).sum()) for b, each in precisions.items()}
    for a in range(streams):
        x = factors.get(variable(a))
        second = None if x is None else x.vectors.T @ moment(variable(a), variable(a)) @ x.vectors
        for b in [b for first, b in ordered if first == a]:
            assert x is not None and second is not None
            tried = torch.tensor(PENALTIES, dtype=torch.float64) * float(x.values.sum()) / d
            errors = held_out_errors(
                x, precisions[b], fit.covariance(b, variable(a)), tried, second, moment(b, variable(a)), totals[b]
            )
            penalties[a, b] = float(tried[int(errors.argmin())])
    fit.merge(choose)
    factors = {each: Factor.of(fit.covariance(each, each), TOLERANCE) for each in factors}
    judged = [(a, b) for b in range(streams) for a in range(b)]
    out: dict[str, list[Tensor]] = {"maps": [], "xs": [], "ys": [], "rho": []}
    count = []
    for a, b in [*judged, *(pair for pair in ordered if pair[0] > pair[1])]:
        source = variable(a)
        out["maps"].append(ridge(factors[source], fit.covariance(b, source), penalties[a, b]))
        if a > b:
            continue
        found = canonical(factors[source], factors[b], fit.covariance(b, source))
        pad = d - len(found.rho)
        for key, each in (("xs", found.xs), ("ys", found.ys), ("rho", found.rho)):
            out[key].append(torch.nn.functional.pad(each, (0, pad)))
        count.append(len(found.rho))
    arrays = {key: torch.stack(each).numpy() for key, each in out.items()}
    means = torch.stack([fit.mean(each) for each in range(len(fit.sums))]).numpy()
    return penalties, {**arrays, "count": np.array(count), "means": means}


# ----------------------------------------------------------------------------------------------------- the second pass


@dataclass(frozen=True, eq=False)
class Judging:
    """Moments, sums of every pair, and sums of features, over the documents that were kept apart."""

    reading: Reading
    saes: tuple[str, ...]
    solution: Arrays = field(repr=False)

    @property
    def key(self) -> str:
        digests = [sae.load(each).digest for each in self.saes]
        return store.key_of("transport judged", kept.VERSION, *_identity(self.reading), digests)

    @property
    def name(self) -> str:
        return f"judging on {self.reading.texts.name}"

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return covered(len(self.reading.streams), self.reading.policy)[1]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        d, judged = self.solution["means"].shape[1], len(self.solution["rho"])
        return self.reading.cut(8 * (len(self.pairs) * d**2 + judged * 7 * (BLOCKS + 2) * d))

    def shards(self) -> int:
        return len(self.runs)

    @cached_property
    def maps(self) -> list[tuple[int, int]]:
        """Of which pair each of `maps` is: those judged first, then those read backwards."""
        streams = len(self.reading.streams)
        judged = [(a, b) for b in range(streams) for a in range(b)]
        return [*judged, *((a, b) for a in range(streams) for b in range(a) if b in self.targets)]

    @property
    def targets(self) -> list[int]:
        """The streams that are read backwards too: those that an SAE reads, where sources are the same token."""
        return backwards(self.reading, self.saes)

    def shard(self, number: int) -> Arrays:
        model, streams = self.reading.origin.load(), len(self.reading.streams)
        variable = (lambda a: a) if self.reading.policy == "same" else (lambda a: streams + a)
        dtype = torch.float64 if self.reading.precise else torch.float32
        held = {key: torch.from_numpy(each).to(model.device, dtype) for key, each in self.solution.items()}
        counts = self.solution["count"]
        moments = Moments(self.pairs)
        sums = [HeldOut(int(kept)) for kept in counts]
        features = [Firing(model, sae.load(each, model.device), self) for each in self.saes]
        for step, (x, document) in enumerate(self.reading.rows(model, self.runs[number], 2)):
            moments.add(x)
            centred = x - held["means"][:, None]
            block = _hash(document, self.reading.seed)
            member = torch.from_numpy(block % BLOCKS == np.arange(BLOCKS)[:, None]).to(x)
            away = offsets(x.shape[1], self.reading.context, hash((self.reading.seed, number, step)) % 2**32)
            for each, (a, b) in enumerate(self.maps[: len(sums)]):
                kept = int(counts[each])
                xs, ys = held["xs"][each][:, :kept], held["ys"][each][:, :kept]
                source, target = centred[variable(a)], centred[b]
                sums[each].add(source @ xs, target @ ys, source @ (held["maps"][each].T @ ys), member, away)
            for one in features:
                one.add(x, centred, held["means"], held["maps"], block, variable)
        out = {f"test.{key}": each for key, each in moments.state().items()}
        for each, one_pair in enumerate(sums):
            out |= {f"{each}.{key}": value for key, value in one_pair.state().items()}
        for each, one in enumerate(features):
            out |= {f"features.{each}.{source}": value for source, value in one.sums.items()}
        return out

    def joined(self, parts: Iterator[Arrays]) -> tuple[Moments, list[HeldOut], dict[str, Array]]:
        moments = Moments(self.pairs)
        sums = [HeldOut(int(kept)) for kept in self.solution["count"]]
        features: dict[str, Array] = {}
        for part in parts:
            moments.merge(Moments(self.pairs).load(_under("test", part)))
            for each, one in enumerate(sums):
                one.merge(HeldOut(0).load(_under(str(each), part)))
            for key, value in part.items():
                if key.startswith("features."):
                    features[key] = features.get(key, 0) + value
        return moments, sums, features


class Firing:
    """Of every feature of an SAE, sums for each source: over the tokens where it fires, and over all.

    sums: by source [block, 13, feature], where it fires of 1, a, a^2, (a - a')^2, a', a'^2 and a a'; over all tokens
    of 1, f, f^2, f', f'^2 and f f', f' being what the SAE reads off the transported stream.
    """

    def __init__(self, model: LanguageModel, found: SAE, judging: Judging) -> None:
        self.sae = found
        self.target = [Site.parse(each) for each in judging.reading.streams].index(stream_of(model.resolve(found.site)))
        rows = found.W_dec.float()
        self.rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        self.maps = {a: each for each, (a, b) in enumerate(judging.maps) if b == self.target}
        self.sums = {a: np.zeros((FEATURE_BLOCKS, 13, found.d_sae)) for a in self.maps}

    def add(
        self, x: Tensor, centred: Tensor, means: Tensor, maps: Tensor, block: Int[Array, row], variable: Any
    ) -> None:
        step = max(64, 2**22 // self.sae.d_sae)
        for start in range(0, x.shape[1], step):
            some = slice(start, start + step)
            with torch.no_grad():
                f = self.sae.encode(x[self.target, some])
            at, feature = (f > FIRES).nonzero(as_tuple=True)
            rows = self.rows[feature].to(x)
            true = (centred[self.target, some][at] * rows).sum(1).double().cpu().numpy()
            own = block[some] % FEATURE_BLOCKS
            number = feature.cpu().numpy() + self.sae.d_sae * own[at.cpu().numpy()]
            member = torch.from_numpy(own == np.arange(FEATURE_BLOCKS)[:, None]).to(f)
            for source, each in self.maps.items():
                moved = centred[variable(source), some] @ maps[each].T
                read = (moved[at] * rows).sum(1).double().cpu().numpy()
                sums = self.sums[source]
                for part, values in enumerate(
                    (np.ones_like(true), true, true**2, (true - read) ** 2, read, read**2, true * read)
                ):
                    summed = np.bincount(number, values, FEATURE_BLOCKS * self.sae.d_sae)
                    sums[:, part] += summed.reshape(FEATURE_BLOCKS, self.sae.d_sae)
                with torch.no_grad():
                    other = self.sae.encode(moved + means[self.target])
                for part, dense in enumerate((torch.ones_like(f), f, f * f, other, other * other, f * other), start=7):
                    sums[:, part] += (member @ dense).double().cpu().numpy()


def feature_facts(sums: Float[Array, "block 13 feature"], seed: int) -> Float[Array, "fact feature"]:
    """FEATURE_FACTS of every feature from the sums of `Firing`, with percentiles over resampled blocks."""

    def facts(total: Array) -> tuple[Array, ...]:
        n, a, aa, left, b, bb, ab, all_n, f, ff, _, gg, fg = (total[..., part, :] for part in range(13))
        with np.errstate(divide="ignore", invalid="ignore"):
            whole, spread, together = aa - a * a / n, bb - b * b / n, ab - a * b / n
            whole = np.where(whole > 1e-9 * aa, whole, np.nan)
            read = 1 - (ff - 2 * fg + gg) / (ff - f * f / all_n)
            return n, read, 1 - left / whole, b / a, together / np.sqrt(whole * spread), together / spread

    count, read, r2, carried, correlation, slope = facts(sums.sum(0))
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), FEATURE_ROUNDS)
    rare = count < RAREST
    ends: list[Array] = [read, r2]
    for value, part in ((read, 1), (r2, 2)):
        drawn = np.concatenate([
            facts(np.tensordot(weights[start : start + 20].astype(float), sums, 1))[part]
            for start in range(0, FEATURE_ROUNDS, 20)
        ])  # fmt: skip
        low, high = np.nanquantile(
            np.where(np.isfinite(drawn), drawn, 0.0), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0
        )
        ends += [np.fmin(low, value), np.fmax(high, value)]
    rows = np.stack([read, ends[2], ends[3], r2, ends[4], ends[5], carried, correlation, slope])
    return np.vstack([count, np.where(rare | np.isnan(rows), np.nan, rows)]).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- together


def fitted(model: LanguageModel, reading: Reading) -> str:
    """Both passes, and the file that is kept of them; its key."""
    saes = own_saes(model, reading.streams)
    digests = [sae.load(each).digest for each in saes]
    key = store.key_of("transport", kept.VERSION, *_identity(reading), digests)
    path = kept.folder() / f"{key}.safetensors"
    with progress.alone(key):
        if path.exists():
            return key
        width = _width(model, reading)
        fit, choose = run(Fitting(reading, width))
        if not fit.n or not choose.n:
            raise Unsuitable("There are too few texts to fit on, choose with and judge by; give at least 20 documents.")
        penalties, solution = solved(fit, choose, len(reading.streams), reading.policy, backwards(reading, saes))
        test, sums, features = run(Judging(reading, saes, solution))
        if not test.n:
            raise Unsuitable("There are too few texts to fit on, choose with and judge by; give at least 20 documents.")
        arrays = packed(fit, test, penalties, solution, sums, reading.seed)
        for name, value in features.items():
            arrays[name] = feature_facts(value, reading.seed)
        about = {
            "key": key, "version": kept.VERSION, "name": reading.texts.name, "data_digest": reading.texts.digest,
            "model": model.name, "model_digest": model.digest, "policy": reading.policy, "streams": reading.streams,
            "width": width, "tokens": fit.n, "held_out": test.n, "context": reading.context, "seed": reading.seed,
            "saes": saes, "sae_digests": digests,
        }  # fmt: skip
        store.write_arrays(path, arrays, {"transport": json.dumps(about, sort_keys=True)})
    return key


def packed(
    fit: Moments, test: Moments, penalties: Array, solution: Arrays, sums: Sequence[HeldOut], seed: int
) -> Arrays:
    """The arrays of `interp.transport.Operators`."""
    d = fit.sums.shape[1]
    each_pair: dict[str, list[Array]] = {
        "summary": [],
        "null": [],
        "participation": [],
        "correlations": [],
        "curve": [],
    }
    for number, one in enumerate(sums):
        found = one.efficiency(solution["rho"][number][: int(solution["count"][number])], seed)
        each_pair["summary"].append(np.array([getattr(found, each) for each in QUANTITIES]))
        each_pair["null"].append(np.array(found.null))
        each_pair["participation"].append(np.array(found.participation))
        each_pair["correlations"].append(_padded(found.correlations, d))
        each_pair["curve"].append(_padded(found.curve, d))
    of = lambda moments: np.stack([moments.covariance(i, j).numpy() for i, j in moments.pairs])  # noqa: E731
    means = np.stack([test.mean(each).numpy() for each in range(len(test.sums))])
    return {
        **{name: np.stack(each) for name, each in each_pair.items()}, "penalty": penalties,
        "fit_mean": solution["means"], "fit_covariance": of(fit), "test_mean": means,
        "test_covariance": of(test).astype(np.float32),
    }  # fmt: skip


def own_saes(model: LanguageModel, streams: Sequence[str]) -> tuple[str, ...]:
    """The SAEs of this model that read and write one of the streams."""
    found = []
    for name in sae.available(model):
        one = sae.load(name)
        try:
            site = model.resolve(one.site)
        except Unsuitable:
            continue
        if not one.is_transcoder and str(stream_of(site)) in streams:
            found.append(name)
    return tuple(found)


def backwards(reading: Reading, saes: Sequence[str]) -> list[int]:
    """The streams that are read from later ones too: where an SAE is, and sources are the same token."""
    if reading.policy != "same":
        return []
    return sorted({reading.streams.index(str(stream_of(sae.load(each).site))) for each in saes})


def stream_of(site: Site) -> Site:
    """The same place, as the streams are named: what enters a layer is what left the one before."""
    return Site("resid_post", site.layer - 1) if site.kind == "resid_pre" and site.layer else site


def _identity(reading: Reading) -> tuple[Any, ...]:
    return (
        reading.origin.digest, reading.texts.digest, reading.streams, reading.policy, reading.context, reading.seed,
        reading.precise,
    )  # fmt: skip


def _width(model: LanguageModel, reading: Reading) -> int:
    with torch.no_grad(), hooks.alone(), model.record([reading.streams[0]]) as found:
        model(model._random_input(), keep=1)
    return int(found[reading.streams[0]].shape[-1])


def _hash(document: Int[Array, row], seed: int) -> Int[Array, row]:
    """A number for each document that has nothing to do with its place."""
    from interp._index_pass import mix

    return (mix(document.astype(np.uint64) + mix(np.array([seed], np.uint64))) >> np.uint64(20)).astype(np.int64)


def _under(name: str, arrays: Arrays) -> Arrays:
    return {key.removeprefix(f"{name}."): each for key, each in arrays.items() if key.startswith(f"{name}.")}


def _padded(values: Array, d: int) -> Array:
    out = np.full((d, *values.shape[1:]), np.nan, np.float32)
    out[: len(values)] = values
    return out
