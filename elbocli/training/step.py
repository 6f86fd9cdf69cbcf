"""One optimizer update, and the losses of a batch."""

import torch
from torch import Tensor, nn

from elbocli.core.learning_rate import learning_rate
from elbocli.core.objective import Objective
from elbocli.errors import NonFiniteError
from elbocli.runtime.device import Precision, seed_dropout
from elbocli.runtime.processes import to_local
from elbocli.training.batches import Batches
from elbocli.training.state import TrainState


def step_losses(
    network: nn.Module,
    batches: Batches,
    step: int,
    part: int,
    objective: Objective,
    logsnr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weighted loss, ‖ε−ε̂‖²/D and λ of the images of a micro-batch, [n] each.

    The weighted loss is per dimension.
    network: function (z, λ [n], labels [n] or None) → network output [n,C,H,W].
    step: number of updates done before. part: index of the micro-batch within the step.
    logsnr: λ of each image of the whole batch, [batch]; None: the schedule's λ(t).
    Source: Kingma & Gao 2023.
    """
    settings = batches.settings
    device = batches.device
    mine = batches.parts[part]
    # Noise levels: λ(t) of every image of the batch.
    if logsnr is None:
        logsnr = objective.schedule.logsnr(batches.times(step))
    level = logsnr[mine.start : mine.stop]
    x, eps, labels = batches.at(step, part)
    if batches.dropout:
        seed_dropout(device, batches.masks.seed(step) + mine.start)
    with Precision(settings.precision, device).autocast():
        return objective.losses(network, x, eps, labels, level)[:3]


def update(state: TrainState) -> None:
    """Do one optimizer update; skip it if the loss or the gradient isn't finite."""
    settings = state.settings
    world = state.world
    spread = state.spread
    optimizer = state.optimizer
    step = state.steps_done
    parts = len(state.batches.parts)
    scale = state.scale
    seen = []
    for part in range(parts):
        with spread.accumulating(last=part == parts - 1):
            loss, eps_error, logsnr = step_losses(spread.forward, state.batches, step, part, state.objective)
            # Backward: DDP averages gradients over processes, so the factor world.size makes the result the batch's mean.
            (loss.sum() * (scale.float() * (world.size / settings.batch_size))).backward()
        seen.append((logsnr, eps_error, loss.detach()))
    for logsnr, eps_error, _ in seen:
        state.sums.add(logsnr, eps_error)
    total = torch.cat([loss for _, _, loss in seen]).double().sum()
    gradients = [to_local(weight.grad) for weight in state.live.values() if weight.grad is not None]
    # Not finite? Loss and gradient norm of the whole batch stay on the device, so that the host needn't wait.
    squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    if world.rank >= spread.shards:
        squares = torch.zeros_like(squares)  # copies have equal gradients: count those of the first copy alone
    squares, total = world.added(torch.stack([squares, total])).unbind()
    norm = squares.sqrt() / scale
    left_out = state.should_skip(total, norm)

    # Optimizer: it divides gradients by grad_scale, and does nothing where found_inf is 1.
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings.steps, settings.lr, settings.warmup_steps, state.lr_decay)
    clipped = scale * (norm / settings.grad_clip).clamp(min=1) if settings.grad_clip else scale
    optimizer.grad_scale = clipped.float()  # type: ignore[attr-defined]
    optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    state.totals += torch.stack([total, norm, torch.ones_like(norm)]).where(~left_out, 0)

    # Averages of the weights; then the network's own constraint on its weights, such as normalisation.
    state.steps_done += 1
    state.ema.follow(state.steps_done, state.images, settings.batch_size)
    state.constrain(left_out)


def check(state: TrainState) -> None:
    """Raise NonFiniteError on all ranks if the loss or the gradient of an update wasn't finite."""
    number, total, norm = state.first_bad.tolist()
    if number:
        raise NonFiniteError(
            f"step {int(number)}: loss {total / state.settings.batch_size:g}, gradient norm {norm:g}; earlier weights are kept; "
            "lower --lr, or raise --warmup-steps"
        )
