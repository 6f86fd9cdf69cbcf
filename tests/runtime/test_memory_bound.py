import resource
import threading

import numpy as np
import pytest

from elbocli.runtime.memory_bound import bounded_memory

LIMIT = resource.getrlimit(resource.RLIMIT_DATA)


def test_a_block_takes_no_more_than_it_may():
    with pytest.raises(MemoryError), bounded_memory(64 << 20):
        np.ones(128 << 20, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == LIMIT
    with bounded_memory(256 << 20):
        assert np.ones(128 << 20, np.uint8)[-1] == 1
    assert np.ones(128 << 20, np.uint8)[-1] == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_of_several_threads_lifts_the_bound(order):
    blocks = [bounded_memory(1 << 30), bounded_memory(2 << 30)]
    for block in blocks:
        block.__enter__()
    blocks[order[0]].__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) != LIMIT
    blocks[order[1]].__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == LIMIT


def test_threads_that_bound_themselves_at_once_leave_no_bound():
    def work():
        for _ in range(200):
            with bounded_memory():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == LIMIT
