"""The mark of tests that shard on the CPU."""

import pytest

from elbocli.train.sharded import ON_CPU

SHARDS = pytest.mark.skipif(not ON_CPU, reason="this torch can't shard on the CPU")
