"""What diffusion means, stated apart from the package: noising, and every prediction's target and estimates."""


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
