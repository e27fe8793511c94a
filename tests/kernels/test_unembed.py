import dataclasses

import pytest
import torch

from kernels.unembed import unembed, unembed_dense


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("biased", [True, False])
def test_it_agrees_with_the_reference(seed, chunk, cap, biased):
    generator = torch.Generator().manual_seed(seed)
    hidden, final = torch.randn(12, 16, generator=generator), torch.randn(4, 16, generator=generator)
    weight, bias = 2 * torch.randn(100, 16, generator=generator), torch.randn(100, generator=generator)
    settings = {"final": final, "k": 5, "chosen": (99, 0, 42), "cap": cap}
    streamed = unembed(hidden, weight, bias if biased else None, chunk=chunk, **settings)
    dense = unembed_dense(hidden, weight, bias if biased else None, **settings)
    for field in dataclasses.fields(dense):
        torch.testing.assert_close(
            getattr(streamed, field.name), getattr(dense, field.name), rtol=1e-5, atol=2e-5, msg=field.name
        )


def test_the_last_layer_does_not_differ_from_itself_and_certainty_has_no_entropy():
    hidden = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(4))
    found = unembed(hidden, weight, final=hidden, chunk=7)
    assert float(found.kl.max()) < 1e-5 and (found.entropy > 0.1).all()
    sure = unembed(1000 * hidden, weight, final=hidden, chunk=7)
    assert float(sure.entropy.max()) < 1e-3 and torch.isfinite(sure.kl).all()


def test_k_may_be_larger_than_a_chunk_and_than_the_vocabulary():
    hidden, weight = torch.randn(2, 4), torch.randn(10, 4)
    found = unembed(hidden, weight, final=hidden, k=20, chunk=3)
    assert found.values.shape == (2, 10)
    torch.testing.assert_close(found.values, (hidden @ weight.T).sort(1, descending=True).values)


def test_logits_far_from_zero_do_not_overflow():
    hidden = torch.ones(2, 4)
    weight = torch.full((30, 4), 500.0) + torch.arange(30)[:, None]
    found = unembed(hidden, weight, final=hidden, chunk=4, chosen=(0,))
    assert found.ids[:, 0].tolist() == [29, 29] and found.rank[:, 0].tolist() == [29, 29]
    torch.testing.assert_close(found.logsumexp, torch.logsumexp(hidden @ weight.T, 1))
