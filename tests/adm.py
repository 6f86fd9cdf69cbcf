"""ADM's diffusion re-stated (Dhariwal & Nichol 2021; Nichol & Dhariwal 2021): its betas, its subsets of timesteps, a walk.

In float64, from the formulas in ᾱ of their papers; nothing of elbo is used.
"""

import numpy as np
import torch


def betas(name, count):
    """β of each timestep: `linear`, or `cosine` with its cut at .999."""
    if name == "linear":
        return np.linspace(0.1 / count, 20 / count, count)
    clean = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - clean[1:] / clean[:-1], 0.999)


def subset(count, words):
    """Timesteps that `250` or `ddim25` takes of so many, rising."""
    if words.startswith("ddim"):
        wanted = int(words[4:])
        gap = next(gap for gap in range(1, count) if (count + gap - 1) // gap == wanted)
        return list(range(0, count, gap))
    wanted, at, found = int(words), 0.0, []
    while len(found) < wanted:
        found.append(round(at))
        at += (count - 1) / (wanted - 1)
    return found


class Spaced:
    """The process of a subset of timesteps: betas such that its ᾱ are the original ones there."""

    def __init__(self, name, count, words):
        self.timesteps = subset(count, words)
        whole = np.cumprod(1 - betas(name, count))
        self.abar = whole[self.timesteps]
        before = np.append(1.0, self.abar[:-1])
        self.beta = 1 - self.abar / before
        self.before = before
        self.posterior = self.beta * (1 - before) / (1 - self.abar)
        self.smallest = np.log(np.append(self.posterior[1], self.posterior[1:]))
        self.largest = np.log(self.beta)

    def walk(self, network, z, noise, variance, clip=False):
        """x from z at the last timestep. network(z, timestep) → ε̂, or (ε̂, v) with variance `learned`.

        variance: `small`, `large` or `learned`, the range of which v ∈ [−1, 1] spans.
        """
        for i in reversed(range(len(self.beta))):
            out = network(z, self.timesteps[i])
            eps, v = out if variance == "learned" else (out, None)
            x = (z - (1 - self.abar[i]) ** 0.5 * eps) / self.abar[i] ** 0.5
            x = x.clamp(-1, 1) if clip else x
            of_x = self.before[i] ** 0.5 * self.beta[i] / (1 - self.abar[i])
            of_z = (1 - self.before[i]) * (1 - self.beta[i]) ** 0.5 / (1 - self.abar[i])
            mean = of_x * x + of_z * z
            if variance == "learned":
                share = (v + 1) / 2
                log_variance = share * self.largest[i] + (1 - share) * self.smallest[i]
            else:
                log_variance = torch.tensor(self.smallest[i] if variance == "small" else self.largest[i])
            z = mean if i == 0 else mean + (0.5 * log_variance).exp() * noise()
        return z
