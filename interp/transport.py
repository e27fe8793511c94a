"""Activation transport operators of a model: what is kept of a fit, and every map that can be had from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp import Missing, Unsuitable, store
from interp.model import Model
from interp.sites import Site
from kernels.linear_maps import Canonical, Factor, canonical, reduced_rank, ridge, truncated

SHELF = Path(__file__).parent.parent / "assets" / "transport"
VERSION = 1
TOLERANCE = 1e-6
"""Directions with less than this share of a stream's largest variance are left out: float32 products say no more."""
ENOUGH = 20
"""Tokens for each direction of the stream, below which nothing is claimed."""
PENALTIES = (0.0, *(10.0**power for power in range(-8, 4)), math.inf)
"""Ridge penalties that are tried, in units of the source's mean variance; the last one is the mean."""
Policy = Literal["same", "previous", "attention"]
Kind = Literal["ridge", "reduced rank", "truncated", "identity", "mean", "random"]
QUANTITIES = ("efficiency", "transported", "ceiling", "size")
FEATURE_FACTS = (
    "count", "read", "read low", "read high", "r2", "r2 low", "r2 high", "carried", "correlation", "slope"
)  # fmt: skip
Array = np.ndarray


@dataclass(frozen=True)
class Affine:
    """x -> (x - origin) T^T + image: what a stream is expected to be where another is x."""

    T: Float[Tensor, "d d"]
    origin: Float[Tensor, d]
    image: Float[Tensor, d]

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return (x.to(self.T.dtype) - self.origin) @ self.T.T + self.image

    def to(self, device: torch.device) -> Affine:
        return Affine(self.T.to(device), self.origin.to(device), self.image.to(device))


def covered(streams: int, policy: Policy) -> tuple[int, tuple[tuple[int, int], ...]]:
    """How many variables a fit has, and of which pairs of them it keeps covariances.

    Variables 0 ... S - 1 are the streams; where the source is not the same token, S + a is what stream a is read from.
    """
    if policy == "same":
        return streams, tuple((a, b) for b in range(streams) for a in range(b + 1))
    sources = [(streams + a, streams + a) for a in range(streams - 1)]
    crossed = [(streams + a, b) for b in range(1, streams) for a in range(b)]
    return 2 * streams - 1, (*((b, b) for b in range(streams)), *sources, *crossed)


class Operators:
    """A fit on disk, of which only what is asked for is read.

    key, name: of the fit, and of its texts. streams: the sites, from the embedding up; width: d. tokens, held_out:
    how many the maps were fitted on, and judged on; needed: how many it takes to claim an efficiency.
    """

    def __init__(self, path: Path) -> None:
        """Raises Unsuitable where the file is damaged or none of ours."""
        try:
            self._file = safe_open(path, framework="numpy")
            about: dict[str, Any] = json.loads(self._file.metadata()["transport"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise Unsuitable(f"{path.name} holds no transport operators, or is damaged; fit them again.") from None
        self.path, self.about = path, about
        self.key, self.name, self.model_digest = str(about["key"]), str(about["name"]), str(about["model_digest"])
        self.policy: Policy = about["policy"]
        self.streams = tuple(Site.parse(each) for each in about["streams"])
        self.width, self.tokens, self.held_out = (int(about[each]) for each in ("width", "tokens", "held_out"))
        self.saes: tuple[str, ...] = tuple(about["saes"])
        self.sae_digests: tuple[str, ...] = tuple(about["sae_digests"])
        self.needed = ENOUGH * self.width
        _, pairs = covered(len(self.streams), self.policy)
        self._where = {pair: number for number, pair in enumerate(pairs)}
        self.pairs = tuple((a, b) for b in range(len(self.streams)) for a in range(b))
        """(source, target) by number of the streams; what was judged on held-out tokens, in this order"""

    @property
    def enough(self) -> bool:
        """Whether there were tokens enough to claim anything."""
        return self.tokens >= self.needed

    @property
    def names(self) -> tuple[str, ...]:
        """What the streams are called in tables: embed, 0, 1 ..."""
        return tuple("embed" if site.kind == "resid_pre" else str(site.layer) for site in self.streams)

    def number(self, site: Site) -> int:
        """The number of a stream.

        Raises:
            Unsuitable: it is none.
        """
        if site.kind == "resid_pre" and site.layer:
            site = Site("resid_post", site.layer - 1)
        if site not in self.streams:
            raise Unsuitable(f"Operators lead from {self.streams[0]} to {self.streams[-1]}; {site} is none of these.")
        return self.streams.index(site)

    # ------------------------------------------------------------------------------------------------------ moments

    def _variable(self, stream: int) -> int:
        return stream if self.policy == "same" else len(self.streams) + stream

    @cached_property
    def _means(self) -> dict[str, Array]:
        return {of: self._file.get_tensor(f"{of}_mean") for of in ("fit", "test")}

    def mean(self, variable: int, of: Literal["fit", "test"] = "fit") -> Float[Tensor, d]:
        """The mean of a variable over the tokens of the fit, or the held-out ones."""
        return torch.from_numpy(self._means[of][variable])

    def covariance(self, i: int, j: int, of: Literal["fit", "test"] = "fit") -> Float[Tensor, "d d"]:
        """The covariance of two variables there."""
        flipped = (i, j) not in self._where
        number = self._where[(j, i) if flipped else (i, j)]
        found = torch.from_numpy(self._file.get_slice(f"{of}_covariance")[number : number + 1][0]).double()
        return found.T if flipped else found

    def moment(self, i: int, j: int) -> Float[Tensor, "d d"]:
        """Held-out second moment about the means of the fit."""
        moved = [self.mean(each, "test") - self.mean(each) for each in (i, j)]
        return self.covariance(i, j, "test") + torch.outer(*moved)

    def factor(self, variable: int) -> Factor:
        """The fit's covariance of one variable, taken apart."""
        return _factor(self, variable)

    # -------------------------------------------------------------------------------------------------------- maps

    def penalty(self, source: int, target: int) -> float:
        """The ridge penalty that did best on other tokens, as an addition to the variances of the source.

        Raises:
            Unsuitable: the target was not read from this source: backwards only where there was an SAE.
        """
        found = float(self._file.get_tensor("penalty")[source, target])
        if math.isnan(found):
            raise Unsuitable(f"Stream {self.names[target]} was not read from {self.names[source]} when these operators "
                             "were fitted: there was no SAE at it. Fit them again.")  # fmt: skip
        return found

    def map(self, source: int, target: int, kind: Kind = "ridge", rank: int = 0, seed: int = 0) -> Tensor:
        """The map between two streams by number, float64, about their means; rank 0 is all there is.

        ridge          T = S_yx (S_xx + penalty)^-1
        truncated      the largest singular values of that
        reduced rank   the best map of that rank where y is whitened
        identity       1;    mean: 0
        random         whitens x, turns it at random, and colours it as y, with the spread of the true map
        """
        if source > target and self.policy != "same":
            raise Unsuitable("Streams are read backwards by the same token only; choose that policy.")
        rank = min(rank, self.width) or self.width
        if kind == "identity":
            return torch.eye(self.width, dtype=torch.float64)
        if kind == "mean":
            return torch.zeros(self.width, self.width, dtype=torch.float64)
        if kind == "ridge":
            return _ridge(self, source, target)
        if kind == "truncated":
            return truncated(_ridge(self, source, target), rank)
        found = self.canonical(source, target)
        if kind == "reduced rank":
            return reduced_rank(found, rank)
        x, y = self.factor(self._variable(source)), self.factor(target)
        generator = torch.Generator().manual_seed(seed)
        rank = min(rank, len(x.values), len(y.values))
        left, right = (
            torch.linalg.qr(torch.randn(len(each.values), rank, generator=generator, dtype=torch.float64))[0]
            for each in (y, x)
        )
        return y.colouring @ left @ right.T @ x.whitening * float(found.rho[:rank].square().mean().sqrt())

    def canonical(self, source: int, target: int) -> Canonical:
        """Canonical correlations of two streams on the fitting tokens."""
        return _canonical(self, source, target)

    def operator(self, source: Site, target: Site, kind: Kind = "ridge", rank: int = 0, seed: int = 0) -> Affine:
        """`map` between two sites with the means in it, float32."""
        a, b = self.number(source), self.number(target)
        matrix = self.map(a, b, kind, rank, seed)
        if kind == "identity":
            nothing = torch.zeros(self.width)
            return Affine(matrix.float(), nothing, nothing)
        return Affine(matrix.float(), self.mean(self._variable(a)).float(), self.mean(b).float())

    # ------------------------------------------------------------------------------------------------------- quality

    def efficiency(self, source: int, target: int) -> dict[str, Float[Array, 3]]:
        """efficiency, transported, ceiling and size on held-out tokens: value, low, high; `Efficiency` has formulas."""
        summary = self._file.get_tensor("summary")[self.pairs.index((source, target))]
        return dict(zip(QUANTITIES, summary, strict=True))

    def fact(self, name: Literal["null", "participation", "correlations", "curve"], source: int, target: int) -> Array:
        """More of the same: the null of the ceiling, correlations [d] and the curve [rank, 3], NaN behind their end."""
        return self._file.get_tensor(name)[self.pairs.index((source, target))]

    def residual(self, source: int, target: int, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
        """E (y - T x) (y - T x)^T on held-out tokens, about the means of the fit; shift: what a map adds to these."""
        x = self._variable(source)
        crossed = matrix @ self.moment(x, target)
        out = self.moment(target, target) - crossed - crossed.T + matrix @ self.moment(x, x) @ matrix.T
        if shift is not None:
            off = self.mean(target, "test") - self.mean(target) - matrix @ (self.mean(x, "test") - self.mean(x))
            out = out - torch.outer(off, shift) - torch.outer(shift, off) + torch.outer(shift, shift)
        return out

    def transported(self, source: int, target: int, kind: Kind = "ridge", rank: int = 0, seed: int = 0) -> float:
        """1 - E |W (y - T x)|^2 / E |W (y - mean)|^2 on held-out tokens, W whitening y on the fit's."""
        whitening = self.factor(target).whitening
        matrix = self.map(source, target, kind, rank, seed)
        shift = self.mean(self._variable(source)) - self.mean(target) if kind == "identity" else None
        left = ((whitening @ self.residual(source, target, matrix, shift)) * whitening).sum()
        return 1 - float(left / ((whitening @ self.moment(target, target)) * whitening).sum())

    def directions(
        self, source: int, target: int, rows: Float[Tensor, "direction d"], kind: Kind = "ridge", rank: int = 0
    ) -> Float[Array, direction]:
        """R^2 of the target's directions over all held-out tokens."""
        rows = rows.double().cpu()
        left = ((rows @ self.residual(source, target, self.map(source, target, kind, rank))) * rows).sum(1)
        whole = ((rows @ self.moment(target, target)) * rows).sum(1)
        return (1 - left / whole.clamp(min=1e-30)).numpy()

    def features(self, sae: str, source: int, target: int) -> dict[str, Float[Array, feature]] | None:
        """Of every feature of an SAE at the target, on held-out tokens: how it is read off the transported stream.

            read = 1 - sum (f(y) - f(T x + b))^2 / sum (f(y) - mean f)^2            over all tokens; f: its activation
            r2 = 1 - sum (a - a')^2 / sum (a - mean a)^2        where it fires; a = <y, d_f> and a' = <T x, d_f>, as in
            carried = sum a' / sum a                            the paper, both about the fit's mean

        With the ends of 95 % intervals; count: the tokens where it fires; correlation, and slope of a on a'. NaN where
        it fires too rarely. None of an SAE that was not there when the operators were fitted.
        """
        name = f"features.{self.saes.index(sae)}" if sae in self.saes else ""
        if f"{name}.{source}" not in self._file.keys():  # noqa: SIM118
            return None
        return dict(zip(FEATURE_FACTS, self._file.get_tensor(f"{name}.{source}"), strict=True))

    def released(self, source: int, target: int, penalty: float = 1500.0) -> dict[str, float]:
        """What the paper's released code reports: its ceiling is of the fitting tokens, and its metric uncentred.

        ceiling = sum rho_i^2 / d,    size = (sum rho_i)^2 / sum rho_i^2    on the fitting tokens
        transported = 1 - |(Y - Y') S^-1/2|^2 / |(Y - mean) S^-1/2|^2,    S = E y y^T there; judged on held-out ones
        T by ridge with alpha = `penalty` on the sum of squares, its intercept anew in that metric
        """
        x = self._variable(source)
        found = self.canonical(source, target).rho
        matrix = ridge(self.factor(x), self.covariance(target, x), penalty / self.tokens)
        whitening = Factor.of(
            self.covariance(target, target) + torch.outer(self.mean(target), self.mean(target)), TOLERANCE
        ).whitening
        left, whole = (
            ((whitening @ each) * whitening).sum()
            for each in (self.residual(source, target, matrix), self.moment(target, target))
        )
        ceiling, transported = float(found.square().sum()) / self.width, 1 - float(left / whole)
        size = float(found.sum() ** 2 / found.square().sum().clamp(min=1e-30))
        efficiency = transported / ceiling if ceiling > 1e-8 else math.nan
        return {"efficiency": efficiency, "transported": transported, "ceiling": ceiling, "size": size}


@lru_cache(64)
def _factor(of: Operators, variable: int) -> Factor:
    return Factor.of(of.covariance(variable, variable), TOLERANCE)


@lru_cache(64)
def _ridge(of: Operators, source: int, target: int) -> Tensor:
    x = of._variable(source)
    return ridge(of.factor(x), of.covariance(target, x), of.penalty(source, target))


@lru_cache(16)
def _canonical(of: Operators, source: int, target: int) -> Canonical:
    x = of._variable(source)
    return canonical(of.factor(x), of.factor(target), of.covariance(target, x))


# ------------------------------------------------------------------------------------------------------------- finding


def folder() -> Path:
    """Where fitted operators lie."""
    return store.folder() / "transport"


def available(model: Model, policy: str = "") -> list[Operators]:
    """The operators of this model, those that come with it first; of one policy, or of all."""
    found = []
    for path, _ in store.kept_arrays("transport", SHELF):
        try:
            each = _opened(path, path.stat().st_mtime_ns)
        except (Unsuitable, OSError):
            continue
        if each.model_digest == model.digest and policy in ("", each.policy):
            found.append(each)
    return found


@lru_cache(32)
def _opened(path: Path, _: int) -> Operators:
    return Operators(path)


def listed(model: Model, policy: str = "") -> list[tuple[str, str, int]]:
    """Key, name of the texts and number of tokens of each fit there is."""
    return [(each.key, each.name, each.tokens) for each in available(model, policy)]


def find(model: Model, key: str = "", policy: str = "same") -> Operators | None:
    """The fit of that key, or else the first of that policy."""
    found = [each for each in available(model) if each.key == key] if key else available(model, policy)
    if not found:
        return None
    store.mark(found[0].path)
    return found[0]


def need(model: Model, key: str = "", policy: str = "same") -> Operators:
    """`find`, where nothing can be said without one.

    Raises:
        Missing: a fit is named that is not here. Unsuitable: there is none for this model.
    """
    found = find(model, key, policy)
    if found is None and key:
        raise Missing("This is about transport operators that are not kept here; fit them on the Transport page.")
    if found is None:
        raise Unsuitable(
            f"{model.name} has no transport operators of this kind yet; fit them on the Transport page, "
            "or by transport_operator."
        )
    return found
