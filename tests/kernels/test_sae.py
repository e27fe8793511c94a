import pytest
import torch

from kernels.sae import encode_columns, encode_columns_dense, sparse_decode, sparse_decode_dense


def activations(rows: int, d_sae: int, share: float, seed: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(rows, d_sae, generator=generator, dtype=dtype)
    return f * (torch.rand(rows, d_sae, generator=generator) < share)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "d_sae", "d_out"), [(1, 1, 1), (7, 33, 5), (64, 200, 16)])
def test_sparse_decode_agrees_with_the_reference(rows, d_sae, d_out, share, seed):
    f = activations(rows, d_sae, share, seed)
    weight = torch.randn(d_sae, d_out, generator=torch.Generator().manual_seed(seed))
    at, features = f.nonzero(as_tuple=True)
    found = sparse_decode(at, features, f[at, features], weight, rows)
    assert found.shape == (rows, d_out)
    torch.testing.assert_close(found, sparse_decode_dense(at, features, f[at, features], weight, rows))
    torch.testing.assert_close(found, f @ weight, rtol=1e-5, atol=1e-5)


def test_rows_without_features_are_zero_wherever_they_stand_and_a_pair_given_twice_counts_twice():
    weight = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    rows, features = torch.tensor([1, 1, 1, 4]), torch.tensor([0, 1, 0, 1])
    values = torch.tensor([1.0, 1.0, 2.0, -1.0])
    expected = torch.tensor([[0.0, 0.0], [13.0, 26.0], [0.0, 0.0], [0.0, 0.0], [-10.0, -20.0], [0.0, 0.0]])
    for decode in (sparse_decode, sparse_decode_dense):
        assert torch.equal(decode(rows, features, values, weight, 6), expected)
        none = rows[:0]
        assert torch.equal(decode(none, none, values[:0], weight, 3), torch.zeros(3, 2))
        assert decode(none, none, values[:0], weight, 0).shape == (0, 2)


def test_gradients_of_sparse_decode():
    f = activations(5, 12, 0.4, 0, torch.double)
    rows, features = f.nonzero(as_tuple=True)
    values = f[rows, features].requires_grad_()
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double).requires_grad_()
    for decode in (sparse_decode, sparse_decode_dense):
        assert torch.autograd.gradcheck(lambda v, w, decode=decode: decode(rows, features, v, w, 5), (values, weight))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("chosen", [[], [0], [5, 2, 5, 29]])
def test_encode_columns_agrees_with_the_reference(chosen, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(3, 4, 8, generator=generator), torch.randn(8, 30, generator=generator)
    bias, which = torch.randn(30, generator=generator), torch.tensor(chosen, dtype=torch.long)
    found = encode_columns(x, weight, bias, which)
    assert found.shape == (3, 4, len(chosen))
    torch.testing.assert_close(found, encode_columns_dense(x, weight, bias, which), rtol=1e-5, atol=1e-6)


def test_gradients_of_encode_columns():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.double) for shape in ((2, 4), (4, 9), (9,)))
    which = torch.tensor([8, 0, 8])
    given = tuple(each.requires_grad_() for each in (x, weight, bias))
    for encode in (encode_columns, encode_columns_dense):
        assert torch.autograd.gradcheck(lambda *each, encode=encode: encode(*each, which), given)
