"""The average of the weights."""

import torch
from torch import nn

from elbocli.nn.ema import Ema


def test_it_follows_its_recurrence_with_a_warm_start() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    ema = Ema(module, 0.95)
    expected = module.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            module.weight.normal_()
        ema.update(step)
        decay = min(0.95, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(ema.tensors["weight"], expected)
    assert ema.name == "ema-0.95"


def test_it_can_go_on_from_saved_tensors() -> None:
    module = nn.Linear(3, 2)
    one, two = Ema(module, 0.9), Ema(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(2)
    one.update(5)
    two.load({key: value.clone() for key, value in one.tensors.items()})
    for ema in (one, two):
        ema.update(6)
    assert torch.equal(one.tensors["weight"], two.tensors["weight"])
