from typing import Annotated, Literal

import numpy as np

from interp import progress
from interp.method import Range, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.transport._papers import ATO
from interp.methods.transport._reading import explained, identities, read
from interp.model import LanguageModel
from interp.results import TokenGrid
from interp.samples import Prompt
from interp.transport import ENOUGH, QUANTITIES, Operators, Policy, need

SHARED = ("efficiency", "transported", "ceiling")
SHEETS = (
    *(f"{name}{end}" for name in SHARED for end in ("", " low", " high")), "null", "size", "size low", "size high",
    "identity", "this prompt",
)  # fmt: skip


@lens("Transport efficiency", ATO, needs=no_blocks, cost=lambda model, **_: (1, 0))
def transport_efficiency(
    model: LanguageModel,
    sample: Prompt,
    *,
    operators: str = "",
    policy: Policy = "same",
    estimate: Literal["held-out", "released code"] = "held-out",
    rank: Annotated[int, Range(0, 2**14)] = 0,
) -> TokenGrid:
    """Compare what linear maps between the layers carry with the most that any could carry, on texts not fitted on.

        transported = 1 - E |W (y - T x - b)|^2 / E |W (y - mean y)|^2,      W whitens y
        ceiling = sum_i (r_i^2 - s_i^2) / (1 - s_i^2) / d,                   efficiency = transported / ceiling

    r_i are held-out canonical correlations and s_i^2 their mean square where tokens are paired wrongly. Least squares
    of full rank reaches the ceiling by construction, so the efficiency says something of low ranks and of penalties;
    how much is carried, transported and ceiling say.

    Args:
        operators: The key of a fit; the first of that policy unless given.
        policy: Which token a source is taken from; that of the operators where these are named.
        estimate: On held-out tokens, or as the paper's released code has it: its ceiling is of the fitting tokens.
        rank: The rank of the map, by reduced-rank regression; 0 is the ridge map that was fitted.

    Returns:
        TokenGrid [source, target] with a sheet for each quantity and the ends of its 95 % interval; null: what a
        ceiling of zero reaches once in 20; size: how many directions are carried, counted above it; identity: what is
        transported if the stream is left as it is; this prompt: the same of the operator on the prompt's tokens, under
        the changes in force.

    Raises:
        Unsuitable: no operators of this model; Missing: none of that key.

    Assumes:
        20 tokens of the fit for each direction; with fewer, no efficiency is claimed.

    Misleads:
        What can be predicted from a layer need not be read from there: both may follow from the tokens.
    """
    of = need(model, operators, policy)
    count = len(of.streams)
    sheets = {name: np.full((count, count), np.nan) for name in SHEETS}
    seen = read(model, sample, of)
    rank = min(rank, of.width)
    for a, b in progress.track(of.pairs, "comparing layers"):
        for name, value in _numbers(of, a, b, estimate, rank).items():
            sheets[name][a, b] = value
        sheets["this prompt"][a, b] = explained(of, seen, a, b, rank)
    sheets["identity"] = identities(of)
    note = ""
    if estimate != "held-out":
        note = (
            "As the paper's released code has it: its ceiling is of the fitting tokens and biased upwards, and its "
            "metric is not centred. Published numbers can be checked with it, and nothing else."
        )
    elif not of.enough:
        for end in ("", " low", " high"):
            sheets[f"efficiency{end}"][:] = np.nan
        note = (
            f"Fitted on {of.tokens:,} tokens; an efficiency takes {of.needed:,} ({ENOUGH} for each of {of.width} "
            "directions): add text."
        )
    return TokenGrid(of.names, of.names, np.stack(list(sheets.values())), SHEETS, note=note)


def _numbers(of: Operators, source: int, target: int, estimate: str, rank: int) -> dict[str, float]:
    if estimate != "held-out":
        return of.released(source, target)
    found = of.efficiency(source, target)
    out = {f"{name}{end}": float(found[name][number]) for name in QUANTITIES
           for number, end in enumerate(("", " low", " high"))}  # fmt: skip
    if rank:  # no interval was kept for each rank
        curve = of.fact("curve", source, target)
        last = max(int(np.isfinite(curve[:, 1]).sum()), 1)
        values = dict(zip(SHARED, curve[min(rank, last) - 1].tolist(), strict=True))
        out |= {f"{name}{end}": np.nan for name in SHARED for end in (" low", " high")} | values
    return out | {"null": float(of.fact("null", source, target))}
