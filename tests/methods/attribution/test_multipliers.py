"""Every function that DeepLIFT has a rule for adds up; what it has none for is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers as T
from torch import Tensor, nn
from torch.nn import functional as F

from interp import Unsuitable
from interp.methods.attribution._multipliers import Rule, at_reference, contributions
from tests import tiny

RULES: list[Rule] = ["rescale", "reveal cancel", "genomics default"]


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(
    forward: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor, rule: Rule = "rescale", index: int = 0
) -> float:
    """The largest residual over the references, relative to the difference; the answer at x must be the plain one."""
    at = at_reference(forward, x0)
    found, scores = contributions(forward, x, at, index, rule)
    plain = forward(x)[:, index]
    torch.testing.assert_close(
        scores, plain.expand_as(scores), rtol=1e-5, atol=1e-5 if x.dtype == torch.float32 else 1e-9
    )
    difference = scores.double() - at.scores[:, index].double()
    gap = (found.double().flatten(1).sum(1) - difference).abs()
    # a difference of two numbers can't be truer than they are
    return float((gap / difference.abs().clamp(min=1e-2 * float(scores.abs().max()))).max())


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "elu": F.elu, "selu": F.selu, "celu": F.celu, "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "mish": F.mish, "sigmoid": F.sigmoid,
    "tanh": F.tanh, "leaky_relu": F.leaky_relu, "prelu": lambda x: F.prelu(x, torch.tensor([0.3]).to(x)),
    "rrelu": F.rrelu, "softplus": F.softplus, "softsign": F.softsign, "softshrink": F.softshrink,
    "hardshrink": F.hardshrink, "tanhshrink": F.tanhshrink, "threshold": lambda x: F.threshold(x, 0.1, -0.2),
    "hardtanh": F.hardtanh, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "logsigmoid": F.logsigmoid,
    "exp": torch.exp, "log1p abs": lambda x: torch.log1p(x.abs()), "square": torch.square, "power": lambda x: x**3,
    "sqrt": lambda x: (x.square() + 1).sqrt(), "rsqrt": lambda x: torch.rsqrt(x**2 + 1), "sin": torch.sin,
    "erf": torch.erf, "clamp": lambda x: x.clamp(-0.5, 0.7), "rpow": lambda x: 1.5**x, "abs": abs,
    "in place": lambda x: F.relu(x * 1, inplace=True), "method in place": lambda x: (x * 1).relu_(),
    "module made in forward": lambda x: nn.ReLU()(x), "reciprocal": lambda x: 1 / (x**2 + 1),
}  # fmt: skip
WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, -1), "softmax method": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, -1), "softmin": lambda x: F.softmin(x, -1),
    "far apart": lambda x: F.softmax(20 * x, -1), "glu": lambda x: F.glu(x, -1),
    "normalize": lambda x: F.normalize(x, dim=-1), "norm": lambda x: x.norm(dim=-1, keepdim=True) * x,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:], drawn(12, seed=8).to(x), drawn(12, seed=9).to(x)),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:], drawn(12, seed=8).to(x)),
    "group_norm": lambda x: F.group_norm(x, 3, drawn(12, seed=8).to(x), drawn(12, seed=9).to(x)),
    "logsumexp": lambda x: torch.logsumexp(x, -1, keepdim=True) + x, "amax": lambda x: x - x.amax(-1, keepdim=True),
    "max": lambda x: x - x.max(-1, keepdim=True).values, "min": lambda x: x + x.min(-1, keepdim=True)[0],
    "maximum": lambda x: torch.maximum(x[:, :6], x[:, 6:]),
    "minimum": lambda x: torch.minimum(x[:, :6], 0.3 * x[:, 6:]),
    "product": lambda x: x[:, :6] * x[:, 6:], "itself": lambda x: x * x,
    "quotient": lambda x: x[:, :6] / (2 + x[:, 6:] ** 2),
    "matmul": lambda x: x.view(-1, 3, 4) @ x.view(-1, 4, 3),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x, x.tanh()),
    "bmm": lambda x: torch.bmm(x.view(-1, 3, 4), x.view(-1, 3, 4).transpose(1, 2)),
    "var": lambda x: x * torch.var(x, -1, keepdim=True), "std": lambda x: x * x.std(-1, keepdim=True),
    "cat": lambda x: torch.cat([x.relu(), x.new_ones(len(x), 2), -x], 1),
    "where": lambda x: torch.where(torch.arange(12) % 2 == 0, x.tanh(), x.relu() + 1),
    "masked": lambda x: F.softmax(x.masked_fill(torch.arange(12) > 8, -torch.inf), -1)[:, :9],
    "attention": lambda x: F.scaled_dot_product_attention(
        *(x.view(-1, 1, 3, 4) * s for s in (1, 2, 3)), is_causal=True
    ),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        x.view(-1, 4, 1, 3).transpose(2, 3).expand(-1, 4, 3, 3), x.view(-1, 2, 2, 3), x.view(-1, 2, 2, 3).exp(),
        torch.tensor([[True, False]] * 3), enable_gqa=True,
    ),
    "reused": lambda x: F.gelu(F.gelu(F.relu(F.relu(x - 0.1)) + x)),
    "operators": lambda x: (3 - x) * 2 / 5 - (-x) ** 2 + abs(x),
    "adding in place": lambda x: _added(x),
}  # fmt: skip


def _added(x: Tensor) -> Tensor:
    y = x.relu()
    y += x.tanh()
    y *= 2
    return y.sigmoid()


class Shallow(nn.Module):
    """linear, the function, linear."""

    def __init__(self, function: Callable[[Tensor], Tensor], seed: int) -> None:
        super().__init__()
        self.function = function
        self.first = drawn(5, 12, seed=seed, scale=0.7)
        with torch.no_grad():
            width = function(torch.ones(1, 12, dtype=torch.float64)).flatten(1).shape[1]
        self.last = drawn(width, 3, seed=seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.function(x @ self.first.to(x) + 0.1)
        return inner.flatten(1) @ self.last.to(x)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *WHOLE])
def test_every_operation_adds_up(name: str, seed: int) -> None:
    network = Shallow((ELEMENTWISE | WHOLE)[name], seed)
    x, x0 = drawn(1, 5, seed=seed + 2), drawn(3, 5, seed=seed + 3, scale=0.5)
    assert relative(network, x, x0) < 1e-10
    assert relative(network, x.float(), x0.float()) < 1e-4
    for rule in RULES[1:]:
        assert relative(network, x, x0, rule) < 1e-6, rule


POOLS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "overlapping": (2, lambda x: F.max_pool2d(x, 3, 2, 1)), "dilated": (2, lambda x: F.max_pool2d(x, 2, 1, dilation=2)),
    "module": (2, nn.MaxPool2d(2)), "adaptive": (2, lambda x: F.adaptive_max_pool2d(x, 3)),
    "one axis": (1, lambda x: F.max_pool1d(x, 3, 2, 1)), "three axes": (3, lambda x: F.max_pool3d(x, 2, 1)),
    "with indices": (2, lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLS)
def test_pooling_adds_up_between_functions_that_touch_it(name: str) -> None:
    axes, pool = POOLS[name]
    x, x0 = drawn(1, 2, *[9] * axes, seed=1), drawn(2, 2, *[9] * axes, seed=2)
    weight = drawn(4, 2, *[3] * axes, seed=3, scale=0.4)
    convolve = getattr(F, f"conv{axes}d")

    def forward(x: Tensor) -> Tensor:
        return pool(convolve(x, weight, padding=1).relu()).relu().sigmoid().flatten(1).sum(1, keepdim=True)

    for rule in RULES:
        assert relative(forward, x, x0, rule) < 1e-10


def test_batch_norm_residuals_and_dropout_add_up() -> None:
    mean, var, weight, bias = (drawn(4, seed=each).abs() + 0.1 for each in range(4))
    kernel = drawn(4, 4, 3, seed=7, scale=0.4)

    def forward(x: Tensor) -> Tensor:
        normed = F.batch_norm(F.conv1d(x, kernel, padding=1), mean, var, weight - 0.7, bias)
        return F.silu(F.dropout(normed.relu(), 0.5, False) + x).mean(2)

    for rule in RULES:
        assert relative(forward, drawn(1, 4, 16), drawn(2, 4, 16, seed=1), rule) < 1e-10


# -------------------------------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", tiny.VISION)
def test_every_image_model_adds_up(family: str, seed: int) -> None:
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = tiny.vision(family, dtype, seed)
        x = model.inputs(tiny.image(seed))
        x0 = drawn(2, *x.shape[1:], seed=seed + 5, scale=0.3).to(dtype)

        def forward(pixels: Tensor, model: object = model) -> Tensor:
            return model._network(pixel_values=pixels).logits  # type: ignore[attr-defined,no-any-return]

        # a float32 difference can't be truer than its two ends
        ends = max(float(forward(x).abs().max()), float(forward(x0).abs().max()))
        gaps = (forward(x)[:, 1] - forward(x0)[:, 1]).abs()
        allowed = bound * max(1.0, ends / float(gaps.min()) / 10)
        eager = 1e4 if family in ("beit", "swinv2") else 1.0  # transformers' own attention takes softmax in float32
        assert relative(forward, x, x0, index=1) < allowed * (eager if dtype == torch.float64 else 1)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_eager_attention_adds_up_too(family: str) -> None:
    model = tiny.vision(family, torch.float64, 0)
    network = (
        T.AutoModelForImageClassification.from_config(copy.deepcopy(model.config), attn_implementation="eager")
        .double()
        .eval()
    )
    network.load_state_dict(model._network.state_dict())
    x = model.inputs(tiny.image(0))
    assert relative(lambda p: network(pixel_values=p).logits, x, drawn(2, *x.shape[1:], scale=0.3)) < 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "mistral"])
def test_language_models_add_up_over_their_embeddings(family: str, attention: str) -> None:
    kept = tiny.language(family, 1)._network
    network = T.AutoModelForCausalLM.from_config(copy.deepcopy(kept.config), attn_implementation=attention)
    network.load_state_dict(kept.state_dict())
    network = network.double().eval().requires_grad_(False)
    table = network.get_input_embeddings()
    ids = torch.tensor([[3, 77, 200, 14, 9, 31]])
    x, x0 = table(ids), table(ids.flip(1)) + 0.1 * drawn(1, 6, 16)
    forward = lambda e: network(inputs_embeds=e, use_cache=False).logits[:, -1]  # noqa: E731
    assert relative(forward, x, x0, index=40) < 1e-6  # norms and eager softmax run in float32
    assert relative(forward, x, x0, "reveal cancel", index=40) < 1e-4


# ---------------------------------------------------------------------------------------------------- properties


def mlp(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.Softplus(), nn.Linear(7, 3)).double()
    return network.requires_grad_(False), drawn(1, 6, seed=seed), drawn(1, 6, seed=seed + 9)


def test_a_linear_network_gives_weight_times_step() -> None:
    weight, x, x0 = drawn(6, 3), drawn(1, 6, seed=1), drawn(2, 6, seed=2)
    for rule in RULES:
        found, _ = contributions(lambda x: x @ weight + 2, x, at_reference(lambda x: x @ weight + 2, x0), 1, rule)
        torch.testing.assert_close(found, (x - x0) * weight[:, 1])


@pytest.mark.parametrize("rule", RULES)
def test_swapping_image_and_reference_negates(rule: Rule) -> None:
    network, x, x0 = mlp()
    one, _ = contributions(network, x, at_reference(network, x0), 2, rule)
    two, _ = contributions(network, x0, at_reference(network, x), 2, rule)
    torch.testing.assert_close(one, -two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_eight_references_at_once_give_what_each_gives_alone(rule: Rule) -> None:
    network, x, _ = mlp(3)
    x0 = drawn(8, 6, seed=4)
    together, _ = contributions(network, x, at_reference(network, x0), 0, rule)
    alone = torch.cat([contributions(network, x, at_reference(network, each[None]), 0, rule)[0] for each in x0])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-13)


def test_reveal_cancel_on_the_minimum() -> None:
    forward = lambda x: x[:, :1] - torch.relu(x[:, :1] - x[:, 1:])  # noqa: E731
    x, x0 = torch.tensor([[3.0, 2.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    at = at_reference(forward, x0)
    assert contributions(forward, x, at, 0, "reveal cancel")[0].tolist() == [[1.0, 1.0]]
    assert contributions(forward, x, at, 0, "rescale")[0].tolist() == [[0.0, 2.0]]


def test_reveal_cancel_agrees_with_the_papers_equations_written_out() -> None:
    """Two hidden layers in numpy: contributions of single inputs first, then the parts of every unit, then back."""
    rng = np.random.default_rng(0)
    shapes = [(5, 6), (6, 4), (4, 1)]
    weights, biases = [rng.normal(size=s) for s in shapes], [rng.normal(size=s[1]) for s in shapes]
    x, x0 = rng.normal(size=5), rng.normal(size=5)
    relu = lambda v: max(v, 0.0)  # noqa: E731

    up, down, a0 = np.maximum(x - x0, 0), np.minimum(x - x0, 0), x0
    chain = []  # for each layer: weights, and the multipliers of each unit's two parts
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z0 = a0 @ w + b
        plus = np.array(
            [sum(max(w[i, j], 0) * up[i] + min(w[i, j], 0) * down[i] for i in range(len(up))) for j in range(len(b))]
        )
        minus = np.array(
            [sum(max(w[i, j], 0) * down[i] + min(w[i, j], 0) * up[i] for i in range(len(up))) for j in range(len(b))]
        )
        mplus = mminus = np.ones(len(b))
        if layer < 2:
            rise = [
                0.5 * (relu(z + p) - relu(z) + relu(z + p + n) - relu(z + n))
                for z, p, n in zip(z0, plus, minus, strict=True)
            ]
            fall = [
                0.5 * (relu(z + n) - relu(z) + relu(z + p + n) - relu(z + p))
                for z, p, n in zip(z0, plus, minus, strict=True)
            ]
            mplus = np.array([r / p for r, p in zip(rise, plus, strict=True)])
            mminus = np.array([f / n for f, n in zip(fall, minus, strict=True)])
            up, down, a0 = mplus * plus, mminus * minus, np.maximum(z0, 0)
        chain.append((w, mplus, mminus))
    back_plus = back_minus = np.ones(1)
    for w, mplus, mminus in reversed(chain):
        into_plus, into_minus = back_plus * mplus, back_minus * mminus
        back_plus = np.maximum(w, 0) @ into_plus + np.minimum(w, 0) @ into_minus
        back_minus = np.maximum(w, 0) @ into_minus + np.minimum(w, 0) @ into_plus
    expected = np.maximum(x - x0, 0) * back_plus + np.minimum(x - x0, 0) * back_minus

    w, b = [torch.from_numpy(each) for each in weights], [torch.from_numpy(each) for each in biases]
    forward = lambda x: F.linear(F.relu(F.linear(F.relu(F.linear(x, w[0].T, b[0])), w[1].T, b[1])), w[2].T, b[2])  # noqa: E731
    start, end = torch.from_numpy(x0)[None], torch.from_numpy(x)[None]
    for rule in ("reveal cancel", "genomics default"):  # all layers are dense
        found, _ = contributions(forward, end, at_reference(forward, start), 0, rule)  # type: ignore[arg-type]
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_genomics_default_rescales_behind_convolutions() -> None:
    kernel, dense = drawn(6, 3, 3, seed=1), drawn(6 * 8, 2, seed=2)

    def forward(x: Tensor) -> Tensor:
        return F.conv1d(x, kernel, padding=1).relu().flatten(1) @ dense

    x, x0 = drawn(1, 3, 8), drawn(1, 3, 8, seed=5)
    at = at_reference(forward, x0)
    one, other, third = (
        contributions(forward, x, at, 0, rule)[0] for rule in ("genomics default", "rescale", "reveal cancel")
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert (third - other).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("cumprod", lambda x: x.cumprod(1)),
        ("sort", lambda x: x.sort(1).values),
        ("topk", lambda x: x.topk(2).values),
        ("where", lambda x: torch.where(x > 0, x, 2 * x)),
        ("mul", lambda x: x * (x > 0)),
        ("fft", lambda x: torch.fft.fft(x).real),
    ],
)
def test_an_operation_without_a_rule_is_named(name: str, function: Callable[[Tensor], Tensor]) -> None:
    forward = lambda x: function(x).sum(1, keepdim=True)  # noqa: E731
    with pytest.raises(Unsuitable, match=name):
        at_reference(forward, drawn(1, 6))


def test_training_mode_is_refused() -> None:
    with pytest.raises(Unsuitable, match="training"):
        at_reference(lambda x: F.dropout(x, 0.5, True), drawn(1, 6))
    with pytest.raises(Unsuitable, match="training"):
        at_reference(
            lambda x: F.batch_norm(x, torch.zeros(6).double(), torch.ones(6).double(), training=True), drawn(4, 6)
        )


def test_another_way_through_the_network_is_refused() -> None:
    forward = lambda x: (x.relu() if bool(x.sum() > 0) else x.tanh()).sum(1, keepdim=True)  # noqa: E731
    up, down = torch.ones(1, 3).double(), -torch.ones(1, 3).double()
    with pytest.raises(Unsuitable, match="another way"):
        contributions(forward, up, at_reference(forward, down), 0, "rescale")


# ------------------------------------------------------------------------------------------------------- Captum


class Right(nn.Module):
    """What Captum serves: modules of its types, each once, none next to another."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        kinds = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.LeakyReLU]
        layers: list[nn.Module] = [
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, padding=1),
        ]
        layers += [nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8)]
        for kind in kinds:
            layers += [kind(), nn.Linear(8, 8)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.filterwarnings("ignore:Setting forward")
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_captum_where_captum_is_right(seed: int) -> None:
    from captum.attr import DeepLift

    network = Right(seed).double().eval().requires_grad_(False)
    network.body[1].running_mean.copy_(drawn(6, scale=0.3))
    network.body[1].running_var.copy_(drawn(6, seed=3).abs() + 0.5)
    x = drawn(1, 3, 8, 8, seed=seed)
    for x0 in (torch.zeros_like(x), drawn(1, 3, 8, 8, seed=7, scale=0.3)):
        theirs = DeepLift(network).attribute(x.clone().requires_grad_(), x0, target=2).detach()
        ours, _ = contributions(network, x, at_reference(network, x0), 2, "rescale")
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
