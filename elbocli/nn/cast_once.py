"""Weights in the lower precision that autocast would cast them to anew in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbocli.nn.networks import Network
from elbocli.runtime.device import PRECISIONS, Precision


class _Uses(TorchDispatchMode):
    """Weights that are cast to a precision, and weights that anything else is done with."""

    def __init__(self, precision: torch.dtype):
        super().__init__()
        self.precision = precision
        self.cast, self.else_used = set[Tensor](), set[Tensor]()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        casts = function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == self.precision
        weights = {value for value in tree_leaves((args, kwargs)) if isinstance(value, nn.Parameter)}
        (self.cast if casts else self.else_used).update(weights)
        return function(*args, **kwargs)


def cast_weights(network: Network, precision: Precision) -> None:
    """Hold those weights in a lower precision that autocast does nothing with but cast them to it; not for training.

    The network's outputs under autocast stay the same to the last bit. It is called once, with one image, to see which
    they are: λ's first layer, norms and embeddings are used as they are.
    """
    config, dtype, device = network.config, PRECISIONS[precision.name], precision.device
    if dtype == torch.float32:
        return
    z = torch.zeros(1, config.image_channels, config.image_size, config.image_size, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device) if config.num_classes else None
    with torch.no_grad(), precision.applied(), precision.autocast(), _Uses(dtype) as uses:
        network(z, torch.zeros(1, device=device), labels)
    for weight in uses.cast - uses.else_used:
        weight.data = weight.data.to(dtype)
