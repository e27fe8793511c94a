import numpy as np
import pytest
import torch

from kernels.moments import Moments, moments_reference

PAIRS = tuple((i, j) for j in range(3) for i in range(j + 1))


def rows(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Three variables that depend on each other, with means far larger than their spread in some directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.randn(
        d, d, generator=generator, dtype=torch.float64
    )
    y = x @ torch.randn(d, d, generator=generator, dtype=torch.float64) + torch.randn(
        n, d, generator=generator, dtype=torch.float64
    )
    z = torch.tanh(y) + 1000 * (torch.arange(d) % 5 == 0)
    return torch.stack([x + 50, y, z]).to(dtype)


def seen(x: torch.Tensor, sizes: list[int]) -> Moments:
    found = Moments(PAIRS)
    for part in x.split(sizes, 1):
        found.add(part)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_sums_of_parts_equal_all_rows_at_once(dtype, tolerance, seed):
    x = rows(5000, 24, seed, dtype)
    found = seen(x, [1, 999, 2500, 1500])
    for i, j in [*PAIRS, (2, 0)]:
        mean, covariance = moments_reference(x.numpy(), i, j)
        scale = np.sqrt(np.outer(x[i].double().var(0), x[j].double().var(0)))
        assert np.abs((found.covariance(i, j).numpy() - covariance) / scale).max() < tolerance
        assert np.abs((found.mean(i).numpy() - mean) / mean.std()).max() < tolerance
    assert found.n == 5000


@pytest.mark.parametrize("seed", [0, 1])
def test_what_several_have_seen_merges_to_what_one_would_have(seed):
    x = rows(4000, 16, seed, torch.float64)
    whole, merged = seen(x, [4000]), Moments(PAIRS)
    for part in x.split([700, 2300, 1000], 1):
        merged.merge(seen(part, [100, part.shape[1] - 100]))  # so that its sums about its own shift are not zero
    merged.merge(Moments(PAIRS))
    assert merged.n == whole.n
    for pair in PAIRS:
        expected = whole.covariance(*pair)
        assert (merged.covariance(*pair) - expected).abs().max() < 1e-10 * expected.abs().max()
    again = Moments(PAIRS).load(whole.state())
    assert torch.equal(again.covariance(0, 2), whole.covariance(0, 2))


def test_memory_does_not_grow_with_the_rows():
    found = Moments(PAIRS)
    sizes = []
    for seed in range(3):
        found.add(rows(2000, 16, seed))
        sizes.append(sum(each.nbytes for each in found.state().values()))
    assert sizes[0] == sizes[1] == sizes[2]
