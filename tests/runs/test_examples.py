"""Training, validation, bound and API read the same rows as the same examples."""

import numpy as np
import torch

from elbocli.core.streams import Stream
from elbocli.files.dataset import Dataset
from elbocli.runs.examples import Examples, draw_noise, normalised

CPU = torch.device("cpu")


def test_rows_are_the_same_images_one_by_one_in_batches_and_as_the_network_sees_them(digits):
    data = Dataset(digits)
    rows = np.array([7, 2, 250])
    examples = Examples(data, rows, True, Stream(0, "none"), CPU, size=2)
    batches = list(examples)
    assert [batch.rows for batch in batches] == [[7, 2], [250]]
    wanted = torch.from_numpy(data.read(rows)).permute(0, 3, 1, 2) / 127.5 - 1
    for x in (torch.cat([batch.placed(CPU)[0] for batch in batches]), examples.input(*examples.fetch(rows, rows)[:2])):
        torch.testing.assert_close(x, wanted)
        assert torch.equal(x, normalised(data.read(rows)))
    assert torch.cat([batch.labels for batch in batches]).tolist() == data.labels[rows].tolist()
    mirrored = examples.input(*examples.fetch(rows, rows, np.array([True, False, True]))[:2])
    torch.testing.assert_close(mirrored, torch.stack([wanted[0].flip(2), wanted[1], wanted[2].flip(2)]))


def test_noise_has_the_shape_of_x_and_is_the_same_for_any_batch():
    x = torch.zeros(3, 2, 4, 5)
    stream = Stream(3, "noise")
    noise = draw_noise(stream, [4, 9, 1], x)
    assert noise.shape == x.shape and torch.equal(noise[1:2], draw_noise(stream, [9], x))
    assert torch.equal(noise.movedim(1, -1), stream.normal([4, 9, 1], (4, 5, 2))), "drawn with channels last"
