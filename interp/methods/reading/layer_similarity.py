import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, lens
from interp.methods.reading._prompts import RESIDUALS, layer_names, no_blocks, streams
from interp.model import LanguageModel
from interp.results import TokenGrid
from interp.samples import Prompt

PAPER = Paper(
    "Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey",
    "Similarity of Neural Network Representations Revisited",
    2019,
    "ICML",
    "https://arxiv.org/abs/1905.00414",
)


@lens("Similarity of layers", PAPER, needs=no_blocks, cost=lambda model, **_: (1, 0))
def layer_similarity(model: LanguageModel, sample: Prompt) -> TokenGrid:
    """Compare the residual stream after each layer with that after every other.

        cosine(l, m) = mean_t <x_lt, x_mt> / (||x_lt|| ||x_mt||)
        CKA(l, m) = ||X_l' X_m||_F^2 / (||X_l' X_l||_F ||X_m' X_m||_F),    X centred over the tokens

    Returns:
        TokenGrid, a row and a column per layer: the mean cosine, in which a rotation is a change, and linear CKA, in
        which it is none. CKA is not defined (NaN) where all tokens are alike.

    Assumes:
        For CKA, many more tokens than a few: with n tokens in d > n dimensions it is biased upwards.

    Misleads:
        Neighbouring layers are alike because each adds to the last; that they are does not mean that nothing happened.
    """
    resid = [each.double() for each in streams(model, sample)[0]]
    names = (RESIDUALS, *layer_names(model))
    cosine = np.array([[float(_cosine(a, b)) for b in resid] for a in resid])
    # the Gram matrices of tokens give the same norms, and are small where d is large
    grams = [_gram(each) for each in resid]
    norms = [float(each.norm()) for each in grams]
    cka = np.array(
        [
            [float((a * b).sum()) / (n * m) if n > 0 and m > 0 else np.nan for b, m in zip(grams, norms, strict=True)]
            for a, n in zip(grams, norms, strict=True)
        ]
    )
    return TokenGrid(names, names, np.stack([cosine, cka]), ("cosine", "linear CKA"))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a, b, dim=1).mean()


def _gram(x: Float[Tensor, "token d"]) -> Float[Tensor, "token token"]:
    centred = x - x.mean(0)
    gram = centred @ centred.T
    # what rounding leaves of tokens that are all alike
    return gram if float(gram.norm()) > 1e-20 * float(x.square().sum()) else torch.zeros_like(gram)
