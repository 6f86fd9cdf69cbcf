"""What diffusion means, stated apart from the package: noising, and every prediction's target and estimates."""

import numpy as np


def expand(values, like):
    """[B] → [B, 1, …] with the dtype of `like`."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def diffuse(x, eps, logsnr):
    """z = αx + σε. x, eps: [B, …]; logsnr: [B]."""
    return expand(logsnr.sigmoid().sqrt(), x) * x + expand((-logsnr).sigmoid().sqrt(), x) * eps


def target(prediction, x, eps, logsnr):
    """a·x + b·ε."""
    c = prediction.coefficients(logsnr)
    return expand(c.a, x) * x + expand(c.b, x) * eps


def x_hat(prediction, out, z, logsnr):
    """The estimate of the data."""
    c = prediction.coefficients(logsnr)
    return expand(c.x_from_z, z) * z + expand(c.x_from_out, z) * out


def eps_hat(prediction, out, z, logsnr):
    """(α·out − a·z)/d, the estimate of the noise."""
    c = prediction.coefficients(logsnr)
    d = c.alpha * c.b - c.sigma * c.a
    return expand(c.alpha / d, z) * out - expand(c.a / d, z) * z


def betas(name, count):
    """β of each timestep: `linear`, or `cosine` with its cut at .999."""
    if name == "linear":
        return np.linspace(0.1 / count, 20 / count, count)
    clean = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - clean[1:] / clean[:-1], 0.999)
