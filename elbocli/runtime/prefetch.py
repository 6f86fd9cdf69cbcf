"""The work of the next steps, done by another thread while this one is busy with its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`get(step)` is `work(step)`, which must depend on nothing but the step, with up to `depth` steps done beforehand.

    The thread ends with `close`, or when nobody holds this object any more.
    """

    def __init__(self, work: Callable[[int], T], depth: int = 2):
        self._work, self._depth = work, depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="elbo-ahead")
        self._waiting: deque[tuple[int, Future[T]]] = deque()

    def get(self, step: int) -> T:
        """The work of a step; its exception, if it raised one. Any order of steps is right, a rising one is fast."""
        while self._waiting and self._waiting[0][0] != step:
            self._waiting.popleft()[1].cancel()
        following = self._waiting[-1][0] + 1 if self._waiting else step
        for later in range(following, step + self._depth + 1):
            self._waiting.append((later, self._pool.submit(self._work, later)))
        return self._waiting.popleft()[1].result()

    def close(self) -> None:
        """Stop working, and wait for what is being done."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
