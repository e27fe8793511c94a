import pytest
import torch

from kernels.blur import blur, blur_reference


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 3), (9, 7)])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 2.5])
def test_it_agrees_with_the_reference(shape, sigma):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(blur(values, sigma), blur_reference(values, sigma))


def test_a_constant_stays_and_channels_do_not_mix():
    torch.testing.assert_close(blur(torch.full((2, 3, 8, 5), 7.0), 3.0), torch.full((2, 3, 8, 5), 7.0))
    one = torch.zeros(2, 5, 5)
    one[0, 2, 2] = 1
    out = blur(one, 1.0)
    assert (out[1] == 0).all() and float(out[0, 2, 2]) == float(out[0].max()) < 0.2
