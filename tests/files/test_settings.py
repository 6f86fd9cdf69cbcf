"""The settings of all commands: one declaration bounds options, config files and arguments alike."""

import math

import click
import pytest

import elbocli
from elbocli.bound.settings import BoundSettings
from elbocli.commands.shared.setting_options import option_type
from elbocli.data.settings import PrepSettings
from elbocli.errors import UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.settings import Settings
from elbocli.runs.train_settings import TrainSettings
from elbocli.sampling.settings import GridSettings, SampleSettings
from elbocli.scoring.settings import EvalSettings

CLASSES: list[type[Settings]] = [
    TrainSettings,
    SampleSettings,
    GridSettings,
    EvalSettings,
    PrepSettings,
    BoundSettings,
    ImportOptions,
]


def outside(name: str, settings: type[Settings]) -> list[float]:
    """Values just outside the declared bounds of a number."""
    declared = settings.declared()[name]
    whole = declared.kind is int
    beyond = []
    if declared.gt is not None:
        beyond.append(declared.gt)
    if declared.ge is not None or (whole and declared.gt is None):
        least = declared.ge or 0
        beyond.append(least - 1 if whole else math.nextafter(least, -math.inf))
    if declared.le is not None:
        beyond.append(declared.le + 1 if whole else math.nextafter(declared.le, math.inf))
    return beyond


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__name__)
def test_a_number_beyond_its_bounds_is_refused_as_option_and_as_argument(settings):
    tried = 0
    for name, declared in settings.declared().items():
        if declared.kind not in (int, float) or declared.parse:
            continue
        for value in outside(name, settings):
            if declared.zero and value == 0:
                continue
            with pytest.raises(UsageError):
                settings.convert({name: value})
            with pytest.raises(click.BadParameter):
                option_type(declared).convert(repr(value), None, None)
            tried += 1
    assert tried


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__name__)
def test_a_default_is_a_value_of_its_setting(settings):
    for name, declared in settings.declared().items():
        if declared.default is not None and not declared.shown:
            assert settings.convert({name: declared.default}) == {name: declared.default}


def test_an_unknown_setting_is_refused_with_a_similar_name():
    with pytest.raises(UsageError, match="batch_size"):
        SampleSettings.of({"batchsize": 3})


def test_functions_check_arguments_as_commands_do(digits):
    with pytest.raises(UsageError, match="batch_size"):
        elbocli.draw(lambda z, logsnr, labels: z, "v", (1, 8, 8), 2, batch_size=0)
    with pytest.raises(UsageError, match="batch_size"):
        elbocli.score(digits, digits, batch_size=0)
