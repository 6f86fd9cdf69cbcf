"""The idea of elbo in one file: a diffusion loss is a weighting of noise levels, and a noise schedule only samples them.

    python -c "import numpy as np, sklearn.datasets as d; np.save('digits.npy', d.load_digits().images * 255 / 16)"
    python minelbo.py digits.npy

This trains a network on digits for a minute, prints its loss under two schedules and its bound, and draws digits.
x is data, eps noise, z = alpha x + sigma eps, and logsnr is λ = log(α²/σ²), the noise level.
"The paper" is Kingma & Gao 2023, arXiv:2303.00848; VDM is Kingma et al. 2021, arXiv:2107.00630.
"""

import sys

import numpy as np
import torch
from torch import nn

LOW, HIGH, BINS = -10.0, 10.0, 100  # λ runs from almost pure noise to almost clean data, in bins
EDGES = torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64)


def alpha_sigma(logsnr):
    """α² = sigmoid(λ) and σ² = sigmoid(−λ), so α² + σ² = 1: z keeps the variance of x (the paper, sec. 2)."""
    return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


def sigmoid_weighting(logsnr, bias=2.0):
    """w(λ): how much the error at λ counts. This w never rises with λ, so its loss is the ELBO of noisy data (theorem 1)."""
    return (bias - logsnr).sigmoid()


class Cosine:
    """λ(t) = −2 log tan(πt/2), cut to the range of λ, from clean (t = 0) to noise (1). p(λ) = −dt/dλ is its density."""

    first, last = (2 / np.pi * np.arctan(np.exp(-level / 2)) for level in (HIGH, LOW))

    def logsnr(self, t):
        return -2 * (np.pi / 2 * (self.first + (self.last - self.first) * t)).tan().log()

    def density(self, logsnr):
        return 1 / (2 * np.pi * (logsnr / 2).cosh()) / (self.last - self.first)


class Adaptive:
    """p(λ) ∝ w(λ) E‖ε−ε̂‖² in each bin: every t contributes alike to the loss (the paper, sec. 4). No bin is below `floor`."""

    def __init__(self, weighting, errors, floor=0.01):
        shares = weighting((EDGES[1:] + EDGES[:-1]) / 2) * errors
        above = (shares / shares.sum() - floor / BINS).clamp(min=0)
        self.shares = floor / BINS + (1 - floor) * above / above.sum()
        self.times = np.concatenate([[0.0], self.shares.flip(0).cumsum(0)])  # t at each edge, from the clean end

    def logsnr(self, t):
        return torch.from_numpy(np.interp(t, self.times, EDGES.flip(0)))

    def density(self, logsnr):
        return self.shares[bin_of(logsnr)] * BINS / (HIGH - LOW)


def bin_of(logsnr):
    return ((logsnr - LOW) / (HIGH - LOW) * BINS).long().clamp(0, BINS - 1)


def losses(network, x, eps, logsnr, weighting, schedule):
    """(loss, error), each [B]: ½ w(λ)/p(λ) ‖ε−ε̂‖²/D, and ‖ε−ε̂‖²/D itself.

    L_w = ½ ∫ w(λ) E‖ε−ε̂‖² dλ has no schedule in it. Drawing λ from p and dividing by p estimates this integral: the
    schedule is an importance sampler, and any p gives the same loss on average (the paper, eq. 6).
    """
    alpha, sigma = (scale.float()[:, None, None, None] for scale in alpha_sigma(logsnr))
    v, v_hat = alpha * eps - sigma * x, network(alpha * x + sigma * eps, logsnr.float())
    error = (alpha * (v - v_hat)).square().flatten(1).mean(1)  # since ε − ε̂ = α (v − v̂)
    return 0.5 * (weighting(logsnr) / schedule.density(logsnr)).float() * error, error.detach()


class Network(nn.Sequential):
    """v̂ from z [B, C, H, W] and λ [B], by a perceptron on all pixels and waves of λ."""

    def __init__(self, pixels, width=512):
        hidden = (nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        super().__init__(nn.Linear(pixels + 32, width), nn.SiLU(), *hidden, nn.Linear(width, pixels))

    def forward(self, z, logsnr):
        angle = logsnr[:, None] * torch.linspace(-2, 2, 16).exp()
        return super().forward(torch.cat([z.flatten(1), angle.sin(), angle.cos()], 1)).view_as(z)


def train(network, x, steps, batch=128, weighting=sigmoid_weighting):
    """Minimise the weighted loss, under a schedule that follows the network's errors. Returns that schedule."""
    optimizer, schedule = torch.optim.AdamW(network.parameters(), 1e-3), Cosine()
    sums = torch.ones(2, BINS)  # the number of errors and their sum in each bin, from one error of 1
    for step in range(steps):
        t = (torch.rand(1, dtype=torch.float64) + torch.arange(batch) / batch) % 1  # an even comb (VDM, app. I.1)
        rows, logsnr = torch.randint(len(x), (batch,)), schedule.logsnr(t)
        loss, error = losses(network, x[rows], torch.randn_like(x[rows]), logsnr, weighting, schedule)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        sums = (0.99 * sums).index_add(1, bin_of(logsnr), torch.stack([torch.ones(batch), error]))  # old errors fade
        schedule = Adaptive(weighting, (sums[1] / sums[0]).double())
        if step % 500 == 0:
            print(f"step {step}: loss {loss.mean():.4f}")
    return schedule


@torch.no_grad()
def sample(network, z, schedule, steps=64):
    """Images from noise z [B, C, H, W], by DDIM: estimate x and ε at λ, then mix them as the next λ asks."""
    levels = schedule.logsnr(torch.linspace(1, 0, steps, dtype=torch.float64))
    for now, then in zip(levels, [*levels[1:], torch.tensor(torch.inf)]):  # λ = ∞ is clean
        (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
        v_hat = network(z, now.float().expand(len(z)))
        z = alpha_then * (alpha * z - sigma * v_hat) + sigma_then * (alpha * v_hat + sigma * z)
    return z


@torch.no_grad()
def bound(network, pixels, schedule, draws=64):
    """(prior, reconstruction, diffusion), each [N] in nats: their sum bounds −log p(x) from above (VDM, eq. 11)."""
    x, low, high = pixels.float() / 127.5 - 1, EDGES[0], EDGES[-1]  # pixels: levels 0 to 255, [N, C, H, W]
    # KL(q(z₁|x) ‖ N(0, I)): how much of x is left in the noise that sampling starts from
    prior = 0.5 * (low.sigmoid() * (x.square() - 1) - (-low).sigmoid().log()).flatten(1).sum(1)
    # −log p(x|z₀): a softmax over the 256 levels, by their distance to z₀/α, where λ is largest
    distance = (x + (-high / 2).exp() * torch.randn_like(x))[..., None] - torch.linspace(-1, 1, 256)
    choice = (-0.5 * high.exp() * distance.square()).log_softmax(-1)
    reconstruction = -choice.gather(-1, pixels.long()[..., None]).flatten(1).sum(1)
    # ½ ∫ E‖ε−ε̂‖² dλ: the loss above with w = 1, in all dimensions
    t = (torch.rand(draws, len(x), dtype=torch.float64) + torch.arange(draws)[:, None]) / draws
    seen = (losses(network, x, torch.randn_like(x), schedule.logsnr(row), torch.ones_like, schedule)[0] for row in t)
    return prior, reconstruction, sum(seen) / draws * x[0].numel()


def main(path, steps=3000):
    torch.manual_seed(0)
    pixels = torch.from_numpy(np.rint(np.load(path)).astype(np.uint8))[:, None]
    x, network = pixels.float() / 127.5 - 1, Network(pixels[0].numel())
    adaptive = train(network, x, steps)
    for name, schedule in ("cosine", Cosine()), ("adaptive", adaptive):
        logsnr = schedule.logsnr(torch.rand(len(x), dtype=torch.float64))
        loss, _ = losses(network, x, torch.randn_like(x), logsnr, sigmoid_weighting, schedule)
        print(f"loss under {name}: {loss.mean():.4f} ± {loss.std() / len(x) ** 0.5:.4f}")
    print(f"bound: {sum(bound(network, pixels, adaptive)).mean() / x[0].numel() / np.log(2):.3f} bits per dimension")
    for rows in sample(network, torch.randn(8, *x[0].shape), Cosine()).clamp(-1, 1)[:, 0].transpose(0, 1):
        print("  ".join("".join(" .:-=+*#%@"[int(4.9 * (pixel + 1))] * 2 for pixel in row) for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
