"""Every command that runs a network: in a precision that one place switches on, and that it names."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_runner import drained
from torch import Tensor, nn
from typed_settings import typed

import elbocli
from elbocli.bound import estimate, gradients, theorem
from elbocli.bound.measure import MeasureSettings, open_measurement
from elbocli.evaluate import scoring
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.dataset import Dataset
from elbocli.prep import pack
from elbocli.run.settings import resolve
from elbocli.runtime.device import Precision
from elbocli.sample import draw
from elbocli.train import loop
