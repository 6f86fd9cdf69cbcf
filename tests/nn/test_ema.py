"""The averages of the weights."""

import pytest
import torch
from torch import Tensor, nn

from elbocli.core.training import parse_average
from elbocli.nn.weights import Averages, swap

SPECS = ["0.95", "halflife:images=100,ramp=0.1", "power:std=0.05", "power:std=0.2"]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in module.state_dict().items()}


def test_all_follow_their_recurrences_side_by_side() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    averages = Averages([*map(parse_average, SPECS)], tensors(module))
    expected = [module.weight.detach().double() for _ in SPECS]
    for step in range(1, 200):
        with torch.no_grad():
            module.weight.normal_()
        averages.follow(step, 8 * step, 8)
        for index, spec in enumerate(SPECS):
            beta = parse_average(spec).beta(step, 8 * step, 8)
            expected[index] = beta * expected[index] + (1 - beta) * module.weight.detach().double()
    assert [*averages] == [
        "ema-0.95",
        "ema-halflife-100-ramp-0.1",
        "ema-power-0.05",
        "ema-power-0.2",
    ]
    for average, true in zip(averages.values(), expected):
        torch.testing.assert_close(average["weight"].double(), true, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(average["bias"], module.bias.detach(), rtol=1e-6, atol=0)


def test_a_warm_start_by_its_own_formula() -> None:
    live = {"x": torch.zeros(1)}
    average = Averages([parse_average("0.95")], live)
    live["x"].fill_(1)
    average.follow(1, 1, 1)
    assert next(iter(average.values()))["x"].item() == pytest.approx(9 / 11)


def test_an_update_never_waits_for_the_device() -> None:
    # A tensor on the meta device has no value to wait for: asking for one would raise.
    averages = Averages([*map(parse_average, SPECS)], {"x": torch.empty(2, device="meta")})
    for step in (1, 2, 3):
        averages.follow(step, step, 1)


def odd() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    live = {"a": torch.randn(5, 3), "b": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]), "n": torch.tensor(3)}
    average = {key: torch.randn(value.shape).to(value.dtype) for key, value in live.items()}
    return live, average


def bits(values: dict[str, Tensor]) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in values.items()}


def test_a_swap_exchanges_in_place_and_back_bit_for_bit() -> None:
    live, average = odd()
    before, places = (bits(live), bits(average)), [value.data_ptr() for value in (*live.values(), *average.values())]
    with swap(live, average):
        assert (bits(average), bits(live)) == before
    assert (bits(live), bits(average)) == before
    assert [value.data_ptr() for value in (*live.values(), *average.values())] == places


def test_a_swap_is_seen_by_the_module_and_leaves_gradients_on() -> None:
    module = nn.Linear(2, 1, bias=False)
    averages = Averages([parse_average("0.5")], tensors(module))
    with torch.no_grad():
        module.weight.fill_(3)
    next(iter(averages.values()))["weight"].fill_(1)
    with swap(tensors(module), next(iter(averages.values()))):
        assert float(module(torch.ones(1, 2)).detach()) == 2 and torch.is_grad_enabled()
    assert float(module(torch.ones(1, 2)).detach()) == 6


def test_an_error_within_a_swap_restores_both() -> None:
    live, average = odd()
    before = bits(live), bits(average)
    with pytest.raises(RuntimeError, match="within"), swap(live, average):
        raise RuntimeError("within")
    assert (bits(live), bits(average)) == before
