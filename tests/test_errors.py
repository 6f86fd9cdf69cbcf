"""Errors carry the names of parameters; Python shows the names, and the command line the options."""

import pickle

import pytest

from elbocli.errors import FormatError, Parameter, UsageError
from elbocli.files.reading import reading


def test_a_parameter_is_a_name_in_python_and_an_option_on_the_command_line():
    error = UsageError("use fewer ", Parameter("splits"), ", or ", Parameter("feature_precision"), " fp32")
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert str(same) == "use fewer splits, or feature_precision fp32"
        assert same.for_command_line == "use fewer --splits, or --feature-precision fp32"


@pytest.mark.parametrize("raised", [UsageError("lower ", Parameter("size")), KeyError("x")])
def test_an_error_that_gets_its_file_keeps_its_parameters(raised):
    with pytest.raises(FormatError, match=r"^a\.pt: ") as caught, reading("a.pt", ("; choose another ", Parameter("size"))):
        raise raised
    assert "--size" in caught.value.for_command_line
