"""Rounds as the epochs of a training run: the callback that begins and ends them, and what the terminal shows."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from astra_trl.progress import ProgressBar, bars_within


class RoundCallback(TrainerCallback):
    """Calls a trainer's `begin_training`, `begin_round`, `end_step` and `end_round`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._last_round = 0  # the last round that has ended
        self._postponed: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    # An epoch begins before its iterator is made, so the iterator serves the records that are set here.
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_round(round_at(state.epoch)[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_step()
        # What is due at a round's last step waits until the round has ended, so that its checkpoint holds all of it.
        number, inside = round_at(state.epoch)
        if not inside and self._last_round < number - 1:
            self._postponed = [name for name in ("should_evaluate", "should_save") if getattr(control, name)]
            for name in self._postponed:
                setattr(control, name, False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_round = math.ceil(state.epoch)
        self.trainer.end_round(self._last_round)
        for name in self._postponed:
            setattr(control, name, True)
        self._postponed = []


def round_at(epoch: float | None) -> tuple[int, bool]:
    """Return the number of the round at an epoch count, and whether some of its steps have been taken."""
    epoch = epoch or 0.0
    finished = int(epoch + 1e-6)
    return finished + 1, epoch - finished > 1e-6


class RoundProgressCallback(ProgressCallback):
    """A progress bar with the loss beside it, and a table with one line per round.

    Replaces `ProgressCallback`, which prints every log entry as a dictionary. `report_to` receives them as usual.

    Args:
        unit (`str`):
            The records of a round, e.g. `"pair"`.
        records_figure (`str`):
            Name of the round's figure of how many records were usable.
    """

    def __init__(self, unit: str, records_figure: str) -> None:
        super().__init__()
        self.unit, self.records_figure = unit, records_figure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = ProgressBar(
                "training", state.max_steps, "steps", disable=args.disable_tqdm, leave=True
            )
            self.training_bar.write(header(self.unit))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if "round" in logs:
            self.training_bar.write(round_line(logs, state.num_train_epochs, self.records_figure))


@contextmanager
def closed_bar(trainer: Any) -> Iterator[None]:
    """Close the bar of training that is interrupted, so that the error begins on a line of its own. `disable_tqdm` of
    the trainer holds for all bars within the block."""
    try:
        with bars_within(trainer.args.disable_tqdm):
            yield
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RoundProgressCallback) and callback.training_bar is not None:
                callback.training_bar.close()


def header(unit: str) -> str:
    """Return the first line of the table."""
    titles = f"{'round':>9}{'harmful':>10}{'reward':>10}{'logp/token':>12}"
    return f"{titles}{f'{unit}s':>12}{'collecting':>13}{'training':>11}"


def round_line(logs: dict[str, Any], rounds: float, records_figure: str) -> str:
    """Return the line of a round, with its usable records and sibling groups; below it, if there are any, the number
    of exchanges that the figures of harm leave out."""

    def cell(key: str, spec: str) -> str:
        value = logs.get(f"round/{key}")
        return "-" if value is None else format(value, spec)

    left_out = {"failed": "failed", "empty_responses": "empty responses", "unscored": "not scored"}
    counts = [f"{logs[f'round/{key}']} {label}" for key, label in left_out.items() if logs.get(f"round/{key}")]
    records = cell(records_figure, "d") + (f"/{cell('groups', 'd')}" if "round/groups" in logs else "")
    return (
        f"{logs['round']:>4}/{round(rounds):<4}{cell('harmful_share', '.1%'):>10}{cell('reward', '.3f'):>10}"
        f"{cell('probe_logprob_per_token', '.2f'):>12}{records:>12}"
        f"{cell('collect_seconds', '.1f') + ' s':>13}{cell('train_seconds', '.1f') + ' s':>11}"
        + (f"\n{'':>9}  left out of {cell('exchanges', 'd')} exchanges: {', '.join(counts)}" if counts else "")
    )
