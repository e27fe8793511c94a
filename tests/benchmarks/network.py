"""The network that all benchmarks run: a random ResNet of the size of ResNet-18, at 224 px."""

import torch
import transformers


def resnet18() -> torch.nn.Module:
    """The same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                embedding_size=64,
                hidden_sizes=[64, 128, 256, 512],
                depths=[2, 2, 2, 2],
                layer_type="basic",
                num_labels=1000,
            )
        ).eval()
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return network.requires_grad_(False)


def pixels() -> torch.Tensor:
    """One image of noise."""
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def forward(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A forward and nothing else: the unit of the tables."""
    with torch.no_grad():
        return network(pixel_values=x).logits


def forward_and_gradient(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The floor of a gradient CAM: a forward whose graph starts at the last stage, and the gradient there."""
    leaf: list[torch.Tensor] = []

    def start(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        leaf[:] = [output.detach().requires_grad_()]
        return leaf[0]

    handle = network.resnet.encoder.stages[-1].register_forward_hook(start)
    try:
        logits = network(pixel_values=x).logits
    finally:
        handle.remove()
    return torch.autograd.grad(logits[0, 1], leaf[0])[0]
