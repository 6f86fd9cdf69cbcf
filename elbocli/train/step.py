"""One update of the weights, read from top to bottom."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from elbocli.core.loss import denoising_losses
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.training import learning_rate
from elbocli.core.weighting import Weighting
from elbocli.runtime.device import Precision, seed_dropout, sent
from elbocli.runtime.processes import to_local
from elbocli.train.batches import Batches
from elbocli.train.state import TrainState


def step_losses(
    network: nn.Module,
    batches: Batches,
    step: int,
    part: int,
    weighting: Weighting,
    schedule: Schedule,
    prediction: Prediction,
    logsnr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (weighted loss, unweighted ε error, λ) of a part of a step's images: [n] each, per dimension, on the device.

    network: (z, λ [n], labels [n] or None) → out [n,C,H,W]. logsnr: [batch], in place of λ(t). Source: Kingma & Gao 2023.
    """
    settings, device, mine = batches.settings, batches.device, batches.parts[part]
    # Levels: λ(t) of every image of the batch.
    if logsnr is None:
        logsnr = schedule.logsnr(batches.times(step))
    level, send = logsnr[mine.start : mine.stop], partial(sent, device=device)
    x, eps, labels = batches.at(step, part)
    if batches.dropout:
        seed_dropout(device, batches.dropout_seed(step, part))
    with Precision(settings.precision, device).autocast():
        given = x, eps, labels, level, weighting, schedule, prediction, send
        return denoising_losses(network, *given)[:3]


def update(state: TrainState) -> None:
    """Do one optimizer update, or leave it out where it isn't finite, which `state.check` tells. Waits for no device."""
    settings, world, spread, optimizer = state.settings, state.world, state.spread, state.optimizer
    step, parts, scale, seen = state.steps_done, len(state.batches.parts), state.guard.state.scale, []
    for part in range(parts):
        with spread.accumulating(last=part == parts - 1):
            loss, eps_error, logsnr = step_losses(
                spread.forward, state.batches, step, part, state.weighting, state.schedule, state.prediction
            )
            # Backward: replicas average their gradients, so each counts its share of the batch's mean loss fully.
            (loss.sum() * (scale.float() * (world.size / settings.batch))).backward()
        seen.append((loss.detach(), logsnr, eps_error))
    for _, logsnr, eps_error in seen:
        state.sums.add(logsnr, eps_error)
    loss, logsnr, _ = (torch.cat(columns) for columns in zip(*seen))
    gradients = [to_local(weight.grad) for weight in state.live.values() if weight.grad is not None]
    # Not finite? The whole batch's loss and its gradient's norm are known to the device alone.
    squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    if not spread.sharded and not world.first:
        squares = torch.zeros_like(squares)  # replicas have the same gradients, shards have parts of them
    squares, total = world.added(torch.stack([squares, loss.double().sum()])).unbind()
    norm = squares.sqrt() / scale
    left_out = state.guard.leaves_out(step, loss, logsnr, total, norm)

    # Optimizer: it divides gradients by grad_scale, and does nothing where found_inf is 1.
    optimizer.param_groups[0]["lr"] = learning_rate(step, settings.steps, settings.lr, settings.warmup, state.lr_decay)
    clipped = scale * (norm / settings.clip).clamp(min=1) if settings.clip else scale
    optimizer.grad_scale, optimizer.found_inf = clipped.float(), left_out.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    state.totals += torch.stack([total, norm, torch.ones_like(norm)]).where(~left_out, 0)

    # Averages; then what the network itself wants of its weights.
    state.steps_done += 1
    state.ema.update(state.steps_done, state.images, settings.batch)
    state.constrain(left_out)


def rehearse(state: TrainState) -> float:
    """Compute a step without consequences; return how many seconds a step takes, 0 where that isn't known.

    DDP orders gradients anew after the first backward pass, and with them the sums over more than two processes,
    whose last bits would then tell where a run was interrupted. Raises DataError, in all processes alike.
    """
    timed = state.device.type == "cpu" and not state.compiled
    if state.spread.sharded or not (timed or state.world.size > 2):
        return 0.0
    with state.world.together():
        state.batches.ready(state.steps_done)
    arguments, seconds = (state.weighting, state.schedule, state.prediction), 0.0
    passes = 2 if timed and state.world.size == 1 else 1  # the first takes longer: it makes memory and kernels ready
    for _ in range(passes):
        begun = time.monotonic()
        loss, _, _ = step_losses(state.spread.forward, state.batches, state.steps_done, 0, *arguments)
        loss.sum().backward()
        state.optimizer.zero_grad()
        seconds = time.monotonic() - begun
        if seconds > 1:
            break
    return seconds * len(state.batches.parts) if timed else 0.0
