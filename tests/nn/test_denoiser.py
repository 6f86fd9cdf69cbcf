"""From the network's output to x̂, with guidance."""

import pytest
import torch
from identities import diffuse, target
from torch import Tensor, nn

from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.core.sampling import CLIPS, Guidance
from elbocli.nn.denoiser import Denoiser


class Exact(nn.Module):
    """Outputs the true target of one batch."""

    def __init__(self, target: Tensor):
        super().__init__()
        self.target = target

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        return self.target


class Labelled(nn.Module):
    """Outputs the label, −1 for none."""

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        return labels.to(z.dtype).view(-1, 1, 1, 1).expand_as(z)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("logsnr", [-6.0, 0.0, 6.0])
def test_a_perfect_network_gives_back_the_data(name: str, logsnr: float) -> None:
    x, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    level = torch.full((3,), logsnr, dtype=torch.float64)
    prediction = Prediction(name)
    denoise = Denoiser(Exact(target(prediction, x, eps, level)), prediction)
    torch.testing.assert_close(denoise(diffuse(x, eps, level), logsnr), x)


def test_guidance_mixes_two_outputs_inside_its_interval_only() -> None:
    z = torch.zeros(2, 1, 2, 2)
    denoise = Denoiser(Labelled(), Prediction("x"), Guidance(3.0, -1.0, 1.0), torch.tensor([0, 4]))
    inside, outside = denoise(z, 0.5)[:, 0, 0, 0], denoise(z, 2.0)[:, 0, 0, 0]
    assert inside.tolist() == [-1 + 3 * 1, -1 + 3 * 5]
    assert outside.tolist() == [0, 4]
    assert denoise.evaluations == 3


def test_another_network_guides_by_its_own_x_hat_and_the_same_labels() -> None:
    """D = D_guide + scale (D − D_guide), though one network outputs x and the other v."""
    x, weak, eps = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    level = torch.full((2,), 0.5, dtype=torch.float64)
    z = diffuse(x, eps, level)
    eps_of_weak = (z - level.sigmoid().sqrt()[0] * weak) / (-level).sigmoid().sqrt()[0]
    guide = Denoiser(Exact(target(Prediction("v"), weak, eps_of_weak, level)), Prediction("v"))
    denoise = Denoiser(Exact(x), Prediction("x"), Guidance(2.0, 0.0, 1.0), guide=guide)
    torch.testing.assert_close(denoise(z, 0.5), weak + 2 * (x - weak))
    torch.testing.assert_close(denoise(z, 1.5), x)
    assert (denoise.calls, guide.calls, denoise.evaluations) == (2, 1, 3)


def test_clipping_comes_after_guidance() -> None:
    z = torch.zeros(2, 1, 2, 2)
    denoise = Denoiser(Labelled(), Prediction("x"), Guidance(0.5), torch.tensor([0, 4]), clip=CLIPS.parse("static"))
    assert denoise(z, 0.5)[:, 0, 0, 0].tolist() == [-0.5, 1.0]  # −1 + ½·1, and −1 + ½·5 = 1.5 cut; first cut: 0
