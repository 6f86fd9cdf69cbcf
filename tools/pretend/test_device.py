"""The pretend device itself: it notices all that it is there to notice, and leaves nothing behind."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from elbocli.core.adaptive import BinSums
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.runtime.device import sent
from pretend import lacking, pretending
from pretend.cards import is_pinned

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())
CUDA = torch.device("cuda")
HOST_WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy_ to the host": lambda x: torch.empty(4).copy_(x),
    "copy_ to memory that isn't pinned": lambda x: torch.empty(4).copy_(x, non_blocking=True),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "booleans": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "indices on the host": lambda x: x[torch.tensor([0, 1])],
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "to the device": lambda x: torch.ones(4).pin_memory().to(x.device),
    "copy_ to the device": lambda x: x.copy_(torch.ones(4).pin_memory()),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "stream": lambda x: torch.cuda.current_stream().synchronize(),
}
NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).square().sum().sqrt(),
    "scalars of the host": lambda x: x * torch.tensor(2.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "indices": lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)],
    "slices": lambda x: x[1:3].flip(0),
    "repeat_interleave": lambda x: x.repeat_interleave(2),
    "full": lambda x: torch.full((3,), 1.5, device=x.device),
    "sent": lambda x: sent(torch.ones(4), x.device),
    "random": lambda x: torch.rand_like(x),
}


@pytest.mark.parametrize("name", HOST_WAITS)
def test_whoever_waits_is_noticed(name):
    with pretending() as device:
        x = sent(torch.arange(4.0), CUDA)
        assert device.waits == []
        HOST_WAITS[name](x)
    assert len(device.waits) == 1, device.waits


@pytest.mark.parametrize("name", NO_WAITS)
def test_who_does_not_wait_is_let_be(name):
    with pretending() as device:
        NO_WAITS[name](sent(torch.arange(4.0), CUDA))
    assert device.waits == device.copies == []


def test_a_record_names_the_line_that_asked_for_it():
    level = torch.zeros(4, dtype=torch.float64)
    schedule = parse_schedule("cosine", -9, 9)
    objective = Objective(parse_weighting("elbo"), schedule, Prediction("v"))
    with pretending() as device:
        BinSums(-9, 9, device=CUDA).take()
        assert [record.where.partition(":")[0] for record in device.waits] == ["core/adaptive.py"]
        assert "self.values.cpu()" in device.waits[0].where
        assert device.waits.within("BinSums.take") == device.waits
        assert device.waits.outside("BinSums.take") == []
        torch.ones(4).to(CUDA)
        assert len(device.copies) == 1
        x = sent(torch.ones(4, 1, 2, 2), CUDA).requires_grad_()
        loss, *_ = objective.losses(lambda *_: x, x.detach(), x.detach(), None, level)
        device.clear()
        loss.sum().backward()
    assert device.waits == []


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.addcmul(x, x, torch.ones(4)),
        lambda x: torch.cat([x, torch.ones(4)]),
        lambda x: torch.ones(4).add_(x),
        lambda x: torch.nn.functional.linear(x[None], torch.ones(2, 4)),
        lambda x: torch.ones(4)[torch.zeros(1, dtype=torch.long, device=x.device)],
        lambda x: x + x.to("cuda:1"),
        lambda x: torch.ones(4, device="cuda:7"),
        lambda x: x.numpy(),
    ],
)
def test_tensors_of_several_devices_do_not_mix(mix):
    with pretending(), pytest.raises((RuntimeError, TypeError), match="device"):
        mix(sent(torch.arange(4.0), CUDA))


def test_a_copy_to_the_host_arrives_when_its_own_card_is_waited_for():
    with pretending():
        values = torch.arange(4.0).to("cuda:1")
        host = torch.empty(4, pin_memory=True).copy_(values, non_blocking=True)
        values += 1
        mistaken = torch.cuda.Event()
        right = torch.cuda.Event()
        mistaken.record()
        mistaken.synchronize()
        assert bool(host.isnan().all()), "of the current card, on which nothing happened"
        with torch.cuda.device(1):
            right.record()
        later = values.to("cpu", non_blocking=True)
        right.synchronize()
        assert host.tolist() == [0, 1, 2, 3] and bool(later.isnan().all())
        torch.cuda.synchronize(1)
        assert later.tolist() == [1, 2, 3, 4]


def test_pinned_memory_is_pinned_as_long_as_it_lives():
    with pretending():
        value = torch.arange(6.0).view(2, 3).T
        there = value.pin_memory()
        assert torch.equal(there, value) and there.stride() == value.stride()
        assert there.is_pinned() and there[1:].is_pinned() and not value.is_pinned()
        assert torch.empty(3, pin_memory=True).is_pinned() and not torch.empty(3).is_pinned()
        view = there[1:]
        del there
        assert view.is_pinned()
        before = view.untyped_storage().data_ptr()
        del view
        gc.collect()
        assert not is_pinned(value) and before


def test_gradients_are_the_cpus_on_either_card_and_accumulate():
    def work(device: str) -> Any:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.SiLU(), torch.nn.Linear(5, 1)).to(device)
        optimizer = torch.optim.AdamW(layers.parameters(), fused=True)
        for _ in range(2):
            for _ in range(2):
                layers(torch.ones(2, 3).to(device)).square().mean().backward()
            optimizer.step()
        return layers[0].weight.grad.cpu(), layers[2].weight.detach().cpu()

    expected = work("cpu")
    with pretending():
        for found in (work("cuda:0"), work("cuda:1")):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_parameter_may_be_given_other_values_and_another_precision():
    with pretending():
        layer = torch.nn.Linear(4, 4).to(CUDA)
        layer.weight.data = torch.ones(4, 4, device=CUDA).half()
        layer.weight.data[0] = 2
        assert layer.weight.dtype == torch.float16
        out = torch.nn.functional.linear(torch.ones(1, 4, device=CUDA, dtype=torch.float16), layer.weight)
        assert out.tolist() == [[8, 4, 4, 4]]


def test_autocast_is_cudas():
    with pretending(), torch.autocast("cuda", torch.float16):
        x = torch.ones(2, 8, 4, 4, device=CUDA)
        assert torch.nn.functional.conv2d(x, torch.ones(8, 8, 1, 1, device=CUDA)).dtype == torch.float16
        assert torch.nn.functional.group_norm(x.half(), 2).dtype == torch.float32


@pytest.mark.parametrize("allowed", [True, False])
def test_what_is_rounded_to_tf32_is_noticed(allowed, request):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        request.addfinalizer(partial(setattr, backend, "allow_tf32", backend.allow_tf32))
        backend.allow_tf32 = allowed
    with pretending() as device:
        x = torch.ones(2, 8, 4, 4, device=CUDA)
        torch.nn.functional.conv2d(x, x[:, :, :1, :1])
        x[0, 0] @ x[0, 0]
        assert len(device.rounded) == 2 * allowed
        x.half()[0, 0] @ x.half()[0, 0]
        assert len(device.rounded) == 2 * allowed


def test_each_card_has_its_own_random_numbers_and_the_host_keeps_its_own():
    torch.manual_seed(3)
    expected = torch.rand(2)
    with pretending():
        torch.manual_seed(3)
        first, second = (torch.rand(2, device=f"cuda:{k}").tolist() for k in (0, 1))
        assert first == second == torch.rand(2).tolist() == expected.tolist()
        torch.cuda.set_device(1)
        torch.cuda.manual_seed(4)
        assert torch.rand(2, device="cuda:1").tolist() != torch.rand(2, device="cuda:0").tolist()
        assert torch.ones(1, device=CUDA).device == torch.device("cuda:1")


def test_a_graph_does_it_again_to_the_same_tensors_and_waits_for_nobody():
    with pretending() as device:
        x = torch.zeros(4, device=CUDA)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (x + 1).double()
            y[1:].mul_(10).add_(y[0])
        x.copy_(torch.full((4,), 5.0, device=CUDA))
        device.clear()
        graph.replay()
        assert device.waits == [] and y.tolist() == [6, 66, 66, 66]
        with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            float(x.sum())


def test_inference_mode_takes_parameters_and_views_of_them():
    with pretending():
        layer = torch.nn.Linear(2, 2).to(CUDA)
        with torch.inference_mode():
            view = layer.weight[None].unflatten(1, (1, 2))
            made = layer.weight * 2
            assert made.is_inference() and not view.is_inference()
            assert torch.equal(view.flatten(), layer.weight.flatten())


def test_nothing_is_left_behind():
    before = torch.cuda.is_available(), torch.cuda.Event, torch.Tensor.tolist, torch._C._get_accelerator()
    with pytest.raises(ZeroDivisionError), pretending():
        assert torch.cuda.is_available() and torch._C._get_accelerator().type == "cuda"
        _ = 1 / 0
    assert (torch.cuda.is_available(), torch.cuda.Event, torch.Tensor.tolist, torch._C._get_accelerator()) == before
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1, device=CUDA)
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    assert weight.grad.tolist() == [1, 1]
