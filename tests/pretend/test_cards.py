"""The second of two cards: whoever asks for it gets it, and nothing of the first."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typed_settings import typed

from elbocli.errors import UsageError
from elbocli.runtime.device import choose_device, name_of, seed_dropout
from elbocli.sample import draw
from pretend import plain_attention, pretending
from pretend.runs import train, weights_of


def test_images_are_there_before_they_are_read(digits: Path, tmp_path: Path) -> None:
    """Whoever waits for the other card's stream reads what was in memory before."""
    run = train(digits, tmp_path / "run", device="cpu", lr=0.02, warmup=0)
    images = []
    for device in ("cpu", "cuda:1"):
        with plain_attention() if device == "cpu" else pretending():
            draw.draw_samples(run, tmp_path / f"{device}.npy", typed(n=10, batch=4, steps=3, device=device))
        images.append(np.load(tmp_path / f"{device}.npy"))
    assert np.array_equal(*images) and images[0].std() > 1


def test_dropout_is_drawn_by_the_card_that_is_seeded(digits: Path, tmp_path: Path) -> None:
    runs = {}
    for device in ("cuda:0", "cuda:1"):
        with pretending() as pretend:
            for card in pretend.cards:
                card.generator.manual_seed(hash(device))
            runs[device] = train(digits, tmp_path / device, **{"network.dropout": 0.5}, device=device)
    assert weights_of(runs["cuda:1"]) == weights_of(runs["cuda:0"])


def test_seeding_one_card_leaves_the_other_alone() -> None:
    with pretending():
        seed_dropout(torch.device("cuda:0"), 1)
        first = torch.rand(3, device="cuda:0")
        seed_dropout(torch.device("cuda:0"), 1)
        seed_dropout(torch.device("cuda:1"), 2)
        assert torch.rand(3, device="cuda:0").tolist() == first.tolist()
        assert torch.rand(3, device="cuda:1").tolist() != first.tolist()


def test_a_card_that_is_not_there_is_refused() -> None:
    with pretending(), pytest.raises(UsageError, match=r"'cuda:2' can't be used here"):
        choose_device("cuda:2")


def test_each_card_has_its_own_name() -> None:
    with pretending():
        assert [name_of(choose_device(f"cuda:{k}")) for k in (0, 1)] == ["pretend card 0", "pretend card 1"]
