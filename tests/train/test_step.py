"""The step: its loss is core's, and its update follows that loss's gradient, in however many parts."""

from pathlib import Path

import pytest
import torch

from elbocli.core.loss import denoising_losses
from elbocli.core.schedule import Schedule
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.train.state import TrainState
from elbocli.train.step import step_losses, update


def fresh(digits: Path, preset: Path, **options: object) -> TrainState:
    """A state whose network, unlike a new one, says something."""
    data = Dataset(digits)
    state = TrainState(resolve({"preset": str(preset), "network.dropout": 0.0, "clip": 0.0, **options}, data), data)
    torch.manual_seed(1)
    for piece in state.live.values():
        torch.nn.init.normal_(piece, 0, 0.1)
    return state


def losses(state: TrainState, step: int, part: int = 0, schedule: Schedule | None = None) -> torch.Tensor:
    how = state.weighting, schedule or state.schedule, state.prediction
    return step_losses(state.network, state.batches, step, part, *how)[0]


def test_the_loss_of_a_step_is_the_paper_s(digits: Path, preset: Path) -> None:
    state = fresh(digits, preset)
    x, eps, labels = state.batches.at(3)
    levels = state.schedule.logsnr(state.batches.times(3))
    how = state.weighting, state.schedule, state.prediction
    terms = denoising_losses(state.network, x, eps, labels, levels, *how)
    found = step_losses(state.network, state.batches, 3, 0, *how)
    assert all(torch.equal(one, other) for one, other in zip(found, terms[:3], strict=True))
    given = step_losses(state.network, state.batches, 3, 0, *how, logsnr=levels + 1)
    assert torch.equal(given[2], (levels + 1).float()) and not torch.equal(given[0], terms.loss)


def test_a_network_of_another_shape_does_not_train(digits: Path, preset: Path) -> None:
    state = fresh(digits, preset)
    how = state.weighting, state.schedule, state.prediction
    with pytest.raises(UsageError, match="the network gives"):
        step_losses(lambda z, *_: torch.cat([z, z], 1), state.batches, 0, 0, *how)  # type: ignore[arg-type]


@pytest.mark.parametrize("micro_batch", [0, 5])
def test_an_update_follows_the_gradient_of_the_mean_loss(micro_batch: int, digits: Path, preset: Path) -> None:
    whole, state = fresh(digits, preset), fresh(digits, preset, micro_batch=micro_batch)
    wanted = torch.autograd.grad(losses(whole, 0).mean(), list(whole.network.parameters()))
    update(state)
    moments = [one["exp_avg"] for one in state.optimizer.state_dict()["state"].values()]
    for gradient, moment in zip(wanted, moments, strict=True):
        torch.testing.assert_close(moment, 0.1 * gradient, rtol=1e-4, atol=1e-8)
    assert state.steps_done == 1 and float(state.totals[2]) == 1
    norm = torch.stack([gradient.square().sum() for gradient in wanted]).sum().sqrt()
    torch.testing.assert_close(state.interval()[2], float(norm), rtol=1e-5, atol=0)
