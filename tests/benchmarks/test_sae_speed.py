"""What sparse activations save, as ratios within one run on one thread: `make bench`."""

import pytest
import torch

from kernels.sae import encode_columns, encode_columns_dense, sparse_decode
from tests.benchmarks.clock import ratios

pytestmark = pytest.mark.bench
ROWS, D_SAE, D_MODEL, K, ROUNDS = 128, 24_576, 768, 32, 15


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    x, W_enc = torch.randn(ROWS, D_MODEL, generator=generator), torch.randn(D_MODEL, D_SAE, generator=generator)
    return x, W_enc, W_enc.T.contiguous(), torch.zeros(D_SAE)


def test_sparse_decode_is_many_times_faster_than_dense(weights):
    x, W_enc, W_dec, bias = weights
    top = (x @ W_enc + bias).topk(K, dim=1)
    f = torch.zeros(ROWS, D_SAE).scatter(1, top.indices, top.values)
    rows, features = f.nonzero(as_tuple=True)
    values = f[rows, features]
    torch.testing.assert_close(sparse_decode(rows, features, values, W_dec, ROWS), f @ W_dec, rtol=1e-3, atol=1e-2)

    def found():
        at, which = f.nonzero(as_tuple=True)
        return sparse_decode(at, which, f[at, which], W_dec, ROWS)

    taken = ratios(
        {
            "sparse": lambda: sparse_decode(rows, features, values, W_dec, ROWS),
            "found": found,
            "dense": lambda: f @ W_dec,
        },
        ROUNDS,
    )
    print(f"\ndense / sparse decode at {ROWS} x {D_SAE} x {D_MODEL}, k {K}: {taken['dense']:.0f}")
    print(f"with finding what is not zero in a dense matrix: {taken['dense'] / taken['found']:.1f}")
    assert taken["dense"] >= 4


def test_encoding_one_column_is_many_times_faster_than_all(weights):
    x, W_enc, _, bias = weights
    for count in (1, 16, 256):
        which = torch.arange(count) * (D_SAE // count)
        taken = ratios(
            {
                "columns": lambda which=which: encode_columns(x, W_enc, bias, which),
                "all": lambda which=which: encode_columns_dense(x, W_enc, bias, which),
            },
            ROUNDS,
        )
        print(f"\nall / {count} columns: {taken['all']:.0f}")
        assert taken["all"] >= 4
