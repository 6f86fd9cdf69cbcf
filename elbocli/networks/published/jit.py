"""Import checkpoints of JiT.

Its network sees t x + (1 − t) c ε at the time t, where 1 is data, and gives x; c is its noise scale.
Source: Li & He 2025, arXiv:2511.13720.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from elbocli.files.import_options import ImportOptions
from elbocli.files.pickles import attributes, contents, number
from elbocli.files.reading import reading
from elbocli.networks import published as formats
from elbocli.networks.published import TABLES, Imported, Settings, Source, shape_of, source_format
from elbocli.networks.published.dit import LAST, POSITIONS, TABLE, grid_side
from elbocli.networks.transformers import JiTConfig

# JiT's own evaluation draws from the first average
PREFIX = "net."
AVERAGE = "model_ema1"
MARKS = {"x_embedder.proj1.weight", "blocks.0.attn.q_norm.weight", "blocks.0.mlp.w12.weight", LAST}
CONTEXT = "in_context_posemb"
DEPTHS = (12, 24, 32)  # of B, L and H
# Arguments of its training script; published files lack them.
TRAINED = {"P_mean": -0.8, "P_std": 0.8, "t_eps": 0.05, "label_drop_prob": 0.1}


def _is_jit(names: Iterable[str]) -> bool:
    return {name.removeprefix(PREFIX) for name in names} >= MARKS


@source_format("jit", recognises=lambda source: any(map(_is_jit, formats.entries(source.tree).values())))
def jit(source: Source, options: ImportOptions) -> Imported:
    """Import a checkpoint of JiT."""
    if options.weights == "ema" and AVERAGE in contents(source.tree):
        source.notes.append(f"takes the weights {AVERAGE}, as JiT's evaluation does; another average is --weights model_ema2")
        options = replace(options, weights=AVERAGE)
    tensors, averaged, _ = formats.state_dict(source, options, meant=_is_jit)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    bottleneck, channels, patch, _ = shape_of(tensors, "x_embedder.proj1.weight")
    (width,), (head,) = (shape_of(tensors, f"blocks.0.{name}.weight") for name in ("norm1", "attn.q_norm"))
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if depth not in DEPTHS:
        source.notes.append(
            f"the class tokens are taken to join before block {depth // 3}, a third of the depth as in JiT's networks"
        )
    size = grid_side(tensors, width) * patch
    usual = {"noise_scale": 2.0 if size == 512 else 1.0, "proj_dropout": 0.2 if depth == DEPTHS[-1] else 0.0}
    arguments = attributes(contents(source.tree).get("args"))
    script = {name: number(arguments, name, value) for name, value in (TRAINED | usual).items()}
    with reading(source.path):
        config = JiTConfig(
            size,
            channels,
            shape_of(tensors, TABLE)[0] - 1,
            dropout=script["proj_dropout"],
            width=width,
            depth=depth,
            heads=width // head,
            patch=patch,
            code=f"flow-reversed:noise_scale={script['noise_scale']}",
            bottleneck=bottleneck,
            class_tokens=shape_of(tensors, CONTEXT)[1] if CONTEXT in tensors else 0,
            class_start=depth // 3,
        )
    blocks = {"blocks": [f"blocks.{index}" for index in range(depth)]}
    modules = {**TABLES["dit"]["network"], **TABLES["jit"]["network"]}
    modules |= formats.block_modules(blocks, {**TABLES["dit"]["block"], **TABLES["jit"]["block"]})

    def halves(tensor: Tensor) -> Tensor:  # JiT rotates the pairs of channels (2j, 2j + 1) of a head, elbo (j, j + head/2)
        return tensor.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)

    def convert_layout(name: str, tensor: Tensor) -> Tensor:
        if ".qkv." in name:
            q, k, v = tensor.chunk(3)
            return torch.cat([halves(q), halves(k), v])
        return halves(tensor) if ".norm_q." in name or ".norm_k." in name else tensor

    weights = formats.fitted(tensors, config, source, modules, convert_layout, rf"{POSITIONS}|feat_rope.*")
    return Imported(config, weights, _objective(script), averaged)


def _objective(script: dict[str, float]) -> Settings:
    """Return the settings of JiT's training: the loss of v = (x − z)/max(1 − t, t_eps) at t of a logit-normal distribution.

    script: arguments of its training script.
    """
    shift = -2 * math.log(script["noise_scale"])
    times = f"logit-normal:mean={-script['P_mean']},std={script['P_std']}"
    return {
        "prediction": f"x-path:noise_scale={script['noise_scale']}",
        "weighting": f"u-mse:clamped:least={script['t_eps']},shift={shift}@{times}",
        "schedule": f"{times},shift={shift}",
        "logsnr_min": -15.0 + shift,
        "logsnr_max": 15.0 + shift,
        "label_dropout": script["label_drop_prob"],
    }
