"""What stored latents say of themselves: conventions, attributes, refusals."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from elbocli.core.sampling import ROUNDINGS
from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.latents import CONVENTIONS, INPUTS, LatentSpace, read_space

SPACE = LatentSpace("edm2", (0.5, -1.0), (2.0, 0.25), "[0,1]", "vae", "ab" * 32, 256, True)


def test_attributes_round_trip_also_through_a_file(pack) -> None:
    assert read_space(SPACE.attributes(), 2, "x") == SPACE
    path = pack("images.h5", **SPACE.attributes())
    assert read_space(Dataset(path).attributes.more, 2, path) == SPACE
    plain = replace(SPACE, mirrored=False)
    assert read_space(plain.attributes(), 2, "x") == plain


@pytest.mark.parametrize(
    "change",
    [
        {"latent_scale": None},
        {"latent_scale": None, "mirrored": None},
        {"latent_shift": [0.0]},
        {"latent_shift": 1.0},
        {"latent_shift": [0.0, math.nan]},
        {"latent_scale": [1.0, math.inf]},
        {"latent_scale": [1.0, "2"]},
        {"latent_scale": [1.0, 0.0]},
        {"latent_convention": "edm"},
        {"latent_input": "[0,255]"},
        {"autoencoder": ""},
        {"autoencoder_sha256": 3},
        {"pixel_size": 0},
        {"pixel_size": "big"},
        {"mirrored": 2},
    ],
)
def test_attributes_that_cannot_be_are_refused_by_file_and_name(change: dict[str, object]) -> None:
    attributes = {key: value for key, value in {**SPACE.attributes(), **change}.items() if value is not None}
    with pytest.raises(FormatError, match=r"^some\.h5: "):
        read_space(attributes, 2, "some.h5")


def test_latents_without_their_attributes_are_no_dataset_to_train_on(latents: Path, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "copy.h5"
    path.write_bytes(latents.read_bytes())
    with h5py.File(path, "r+") as file:
        del file.attrs["latent_shift"]
    with pytest.raises(FormatError, match=r"copy\.h5: .*shift"):
        Dataset(path, latents=True).identity()


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_names_a_known_range_of_pixels_and_how_they_become_levels(name: str) -> None:
    traits = CONVENTIONS[name].traits
    assert traits.input in INPUTS and traits.rounding in ROUNDINGS
    wanted = {"diffusers": "nearest", "edm2": "truncate"}[name]
    assert replace(SPACE, convention=name).rounding.name == traits.rounding == wanted


def test_the_conventions_are_those_of_their_sources() -> None:
    assert CONVENTIONS["diffusers"].make({"scaling_factor": 0.18215}, 4) == ((0.0,) * 4, (0.18215,) * 4)
    flux = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    assert CONVENTIONS["diffusers"].make(flux, 16) == ((0.1159,) * 16, (0.3611,) * 16)
    each = {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [4.0, 0.5]}
    assert CONVENTIONS["diffusers"].make(each, 2) == ((1.0, 2.0), (0.125, 1.0))
    shift, scale = CONVENTIONS["edm2"].make({}, 4)
    # A channel with exactly the constants' mean and deviation comes out with mean 0 and deviation .5.
    for mean, std, a, b in zip((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), shift, scale, strict=True):
        assert (mean - a) * b == pytest.approx(0) and (mean + std - a) * b == pytest.approx(0.5)


@pytest.mark.parametrize(
    "config", [{}, {"scaling_factor": "x"}, {"scaling_factor": 1, "latents_mean": [0.0], "latents_std": [1.0]}]
)
def test_a_config_that_cannot_be_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        CONVENTIONS["diffusers"].make(config, 2)


def test_edm2_is_for_four_channels() -> None:
    with pytest.raises(UsageError, match="whitens 4 channels, this autoencoder has 16"):
        CONVENTIONS["edm2"].make({}, 16)


def test_listing_the_conventions_imports_no_numbers() -> None:
    code = "import sys, elbocli.files.latents; print(sorted({'numpy', 'torch', 'h5py', 'msgspec', 'logging'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
