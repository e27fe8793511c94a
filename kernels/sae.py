"""Sparse autoencoders at the cost of what fires: decode the nonzero activations, encode the columns asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def sparse_decode(
    rows: Int[Tensor, nnz],
    features: Int[Tensor, nnz],
    values: Float[Tensor, nnz],
    W_dec: Float[Tensor, "d_sae d_out"],
    count: int,
) -> Float[Tensor, "count d_out"]:
    """f W_dec for activations given as (row, feature, value), rows rising: y_r = sum_i v_i W_dec[feature_i].

    Only the decoder rows of features that fire are read: nnz d_out multiplications in place of count d_sae d_out.
    Differentiable in values and W_dec. A row without any feature gives zeros; the same pair given twice counts twice.
    """
    starts = torch.searchsorted(rows.contiguous(), torch.arange(count, device=rows.device))
    return F.embedding_bag(features, W_dec, starts, mode="sum", per_sample_weights=values.to(W_dec.dtype))


def sparse_decode_dense(
    rows: Int[Tensor, nnz],
    features: Int[Tensor, nnz],
    values: Float[Tensor, nnz],
    W_dec: Float[Tensor, "d_sae d_out"],
    count: int,
) -> Float[Tensor, "count d_out"]:
    """The reference: all activations in one matrix, zeros and all, times the decoder."""
    f = values.new_zeros(count, W_dec.shape[0]).index_put((rows, features), values, accumulate=True)
    return f @ W_dec


def encode_columns(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, d_sae],
    features: Int[Tensor, chosen],
) -> Float[Tensor, "*batch chosen"]:
    """x W_enc + b for the chosen features alone: what a slider needs of 24,576 columns is one."""
    return x @ W_enc.index_select(1, features) + bias[features]


def encode_columns_dense(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, d_sae],
    features: Int[Tensor, chosen],
) -> Float[Tensor, "*batch chosen"]:
    """The reference: all columns, then the chosen ones."""
    return (x @ W_enc + bias)[..., features]
