"""Messages (`log`) and counts (`progress`) for the user, which commands display on stderr."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("elbo")
PAUSED = "paused_s"  # value of `progress`: seconds since the last report that were no progress, which the time left leaves out
_show: Callable[..., None] | None = None


def progress(done: int, total: int | None, unit: str, **values: object) -> None:
    """Report that `done` of `total` `unit`s are done. Displayed only after a call of `show_progress_with`.

    total: None: unknown. values: numbers to display, such as loss=.1.
    """
    if _show:
        _show(done, total, unit, values)


def show_progress_with(show: Callable[..., None] | None) -> None:
    """Let `progress` display its reports by calling `show(done, total, unit, values)`; None: not at all."""
    global _show
    _show = show


@contextmanager
def showing_bar(shown: bool, total: int | None, unit: str) -> Iterator[None]:
    """Show progress inside the block as a bar, on a terminal or in a notebook. total, unit: as in `progress`. shown: whether to."""
    from tqdm.auto import tqdm

    bar = tqdm(total=total, unit=unit, disable=not shown)

    def show(done: int, total: int | None, unit: str, values: dict[str, object]) -> None:
        if done < bar.n or total != bar.total:  # another pass, or other images
            bar.reset(total)
        bar.set_postfix(values, refresh=False)
        bar.update(done - bar.n)

    show_progress_with(show)
    try:
        yield
    finally:
        show_progress_with(None)
        bar.close()
