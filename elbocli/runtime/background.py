"""Work that a thread of its own does while this one goes on: the one way in which elbo uses threads to do two things."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Jobs = SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
POLL_S = 0.1


class Background:
    """Jobs that a thread does one after another; it ends with `close`, or when nobody holds this object any more.

    `close` drops the jobs that have not begun, and waits for the one in hand, as the process does at its end. abandon:
    nothing waits for it, `close` neither: a write into a pipe may never return.
    """

    def __init__(self, name: str, abandon: bool = False):
        self._jobs: Jobs = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._jobs,), name=f"elbo-{name}", daemon=True)
        self.close = weakref.finalize(self, _end, self._jobs, None if abandon else self._thread)

    def start(self, job: Callable[[], T]) -> Future[T]:
        """Do it after the jobs before. When it is known to be done, the thread has let go of all that the job held:
        a tensor that a thread lets go of while the interpreter ends would abort the process.
        """
        future: Future[T] = Future()
        self._jobs.put((job, future))
        if self._thread.ident is None:
            self._thread.start()
        return future


def awaited(job: Future[T], look: Callable[[], None]) -> T:
    """Return what a job returns; `look` is called now and then until it does. Raises what either raises."""
    while not wait([job], POLL_S).done:
        look()
    return job.result()


class Ahead(Generic[T]):
    """`get(step)` is `work(step)`, which must depend on nothing but the step, with `depth` more steps done beforehand."""

    def __init__(self, work: Callable[[int], T], depth: int = 2):
        self._work, self._depth = work, depth
        self._background = Background("ahead")
        self._begun: deque[tuple[int, Future[T]]] = deque()

    def get(self, step: int) -> T:
        """Return the work of a step. Raises its exception. Any order of steps is right, a rising one is fast."""
        while self._begun and self._begun[0][0] != step:
            self._begun.popleft()[1].cancel()
        following = self._begun[-1][0] + 1 if self._begun else step
        for later in range(following, step + self._depth + 1):
            self._begun.append((later, self._background.start(partial(self._work, later))))
        return self._begun.popleft()[1].result()


def _work(jobs: Jobs) -> None:
    while _did(jobs):
        pass


def _did(jobs: Jobs) -> bool:
    """Do the next job; return whether there was one. It frees the job's memory here, before the next job comes."""
    begun = jobs.get()
    if begun is None:
        return False
    job, future = begun
    del begun
    if future.set_running_or_notify_cancel():
        try:
            result = job()
        except BaseException as error:
            future.set_exception(error)
        else:
            del job
            future.set_result(result)
    return True


def _end(jobs: Jobs, thread: Thread | None) -> None:
    with suppress(Empty):
        while (begun := jobs.get_nowait()) is not None:
            begun[1].cancel()
    jobs.put(None)
    if thread is not None and thread.ident is not None and thread is not current_thread():
        thread.join()
