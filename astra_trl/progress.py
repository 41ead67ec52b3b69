"""Progress bars: one look, and one rule for when they are shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

DELAY = 2.0  # seconds before the bar of a part that is mostly short
LOOK = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"

_disable: ContextVar[bool | None] = ContextVar("disable_tqdm", default=None)


@contextmanager
def bars_within(disable: bool | None) -> Iterator[None]:
    """Set `disable` of all bars within the block that have none of their own."""
    token = _disable.set(disable)
    try:
        yield
    finally:
        _disable.reset(token)


class ProgressBar(tqdm):
    """Bar that counts to `total`, to be used in a `with` statement.

    It is shown in the main process, if stderr is a terminal or the program a notebook, and it covers the bars around
    it while it is visible: a terminal has one bar at a time.

    Args:
        description (`str`):
            Text before the bar.
        total (`int`):
            The count at the end, which may be changed later. A total of 0 hides the bar.
        unit (`str`, *optional*, defaults to `"exchanges"`):
            The things that are counted.
        disable (`bool`, *optional*):
            `True` hides the bar and `False` shows it without a terminal too. Defaults to that of the bar around it.
        delay (`float`, *optional*, defaults to `0.0`):
            Seconds after which it appears.
        leave (`bool`, *optional*, defaults to `False`):
            Whether it stays on the terminal at the end.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str = "exchanges",
        *,
        disable: bool | None = None,
        delay: float = 0.0,
        leave: bool = False,
    ) -> None:
        from accelerate import PartialState  # takes seconds to import

        self._covered: list[Any] | None = None  # until it is visible
        disable = _disable.get() if disable is None else disable
        super().__init__(
            desc=description,
            total=total,
            unit=unit,
            disable=disable if total and PartialState().is_main_process else True,
            delay=delay,
            leave=leave,
            bar_format=LOOK,
            dynamic_ncols=True,
            miniters=1,  # parts take long and end at once: each is shown
            position=0,
        )
        self._around = bars_within(disable)

    def __enter__(self) -> "ProgressBar":
        self._around.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._around.__exit__(*error)
        super().__exit__(*error)

    def count_to(self, number: int) -> None:
        """Set the count."""
        self.update(number - self.n)

    def display(self, *args: Any, **kwargs: Any) -> Any:
        if self._covered is None:
            self._covered = [bar for bar in self._instances if bar is not self and not bar.disable]
            for bar in self._covered:
                bar.clear()
                bar.disable = True  # which keeps its count, and draws nothing
        return super().display(*args, **kwargs)

    def close(self) -> None:
        super().close()
        covered, self._covered = self._covered or [], []
        for bar in covered:
            bar.disable = False
            bar.refresh()
