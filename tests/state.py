"""Everything that looking into a model must leave as it was."""

from __future__ import annotations

import contextvars
import hashlib
import random
from typing import Any

import numpy as np
import torch

from interp import hooks
from interp.model import Model


def state(model: Model) -> dict[str, Any]:
    """Hooks, flags, gradients, weights bit for bit, the process's random states, and this context's variables."""
    network = model._network
    modules = list(network.modules())
    drawn: Any = np.random.get_state(legacy=False)
    weights = hashlib.sha256()
    for name, tensor in network.state_dict(keep_vars=True).items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {id(tensor)} {tensor.data_ptr()}".encode())
        weights.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    context = contextvars.copy_context()
    return {
        "modules": [id(module) for module in modules],
        "hooks": [
            (
                len(each._forward_hooks),
                len(each._forward_pre_hooks),
                len(each._backward_hooks),
                len(each._backward_pre_hooks),
            )
            for each in modules
        ],
        "training": [module.training for module in modules],
        "forwards": [("forward" in vars(module), type(module).forward) for module in modules],
        "addresses": [getattr(module, "_address", None) for module in modules],
        "requires_grad": [parameter.requires_grad for parameter in network.parameters()],
        "grad": [parameter.grad is None for parameter in network.parameters()],
        "weights": weights.hexdigest(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (
            drawn["state"]["key"].tobytes(),
            *(drawn[key] for key in ("has_gauss", "gauss")),
            drawn["state"]["pos"],
        ),
        "python": random.getstate(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "context": {variable.name: id(context[variable]) for variable in OURS if context.get(variable)},
        "attention": network.config._attn_implementation,
    }


OURS = [value for value in vars(hooks).values() if isinstance(value, contextvars.ContextVar)]
