"""A weights file of torch-fidelity's Inception network, at random: the published ones can't be had without a network."""

import io
import math
from pathlib import Path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def random_weights(path: Path) -> Path:
    """Such that activations keep their size through the layers, and batch norm has something to do."""
    torch.manual_seed(0)
    module = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    try:
        FeatureExtractorInceptionV3.__init__(
            module, "inception-v3-compat", ["2048"], feature_extractor_weights_path=io.BytesIO(b"no weights")
        )
    except Exception:
        # Its layers exist before it fails to load them: that is all that is needed here.
        assert hasattr(module, "fc")
    state = module.state_dict()
    for name, value in state.items():
        if value.dtype.is_floating_point and value.dim() > 1:
            state[name] = torch.randn_like(value) * math.sqrt(2 / value[0].numel())
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.empty_like(value).uniform_(0.7, 1.3)
        elif name.endswith(("bn.bias", "running_mean")):
            state[name] = 0.1 * torch.randn_like(value)
    state["fc.weight"] *= 8
    torch.save(state, path)
    return path
