"""What the terminal shows while a trainer runs: a line a round, a bar while collecting, a bar while training."""

from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback


def header(unit: str) -> str:
    """The table's first line; a round is full of `unit`s."""
    titles = f"{'round':>9}{'harmful':>10}{'reward':>10}{'logp/token':>12}"
    return f"{titles}{f'{unit}s':>12}{'collecting':>13}{'training':>11}"


class RoundProgressCallback(ProgressCallback):
    """transformers' progress bar with the loss beside it, and a table with a line a round.

    Stands in for `ProgressCallback`, which prints every log entry as a dictionary; those go to `report_to` as ever.

    Args:
        unit (`str`):
            What a round is full of.
        found (`str`):
            The round's figure of how many there were.
    """

    def __init__(self, unit: str, found: str) -> None:
        super().__init__()
        self.unit, self.found = unit, found

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.write(header(self.unit))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if "round" in logs:
            self.training_bar.write(round_line(logs, state.num_train_epochs, self.found))


def round_line(logs: dict[str, Any], rounds: float, found: str) -> str:
    """One round's figures under `header`, among them how many records were found in how many sibling groups; and below
    them how many exchanges are in no figure of harm, if there are any."""

    def cell(key: str, spec: str) -> str:
        value = logs.get(f"round/{key}")
        return "-" if value is None else format(value, spec)

    left_out = {"failed": "failed", "empty_responses": "empty responses", "unscored": "not scored"}
    counts = [f"{logs[f'round/{key}']} {label}" for key, label in left_out.items() if logs.get(f"round/{key}")]
    records = cell(found, "d") + (f"/{cell('groups', 'd')}" if "round/groups" in logs else "")
    return (
        f"{logs['round']:>4}/{round(rounds):<4}{cell('harmful_share', '.1%'):>10}{cell('reward', '.3f'):>10}"
        f"{cell('probe_logprob_per_token', '.2f'):>12}{records:>12}"
        f"{cell('collect_seconds', '.1f') + ' s':>13}{cell('train_seconds', '.1f') + ' s':>11}"
        + (f"\n{'':>9}  left out of {cell('exchanges', 'd')} exchanges: {', '.join(counts)}" if counts else "")
    )


def collecting_bar(number: int, hidden: bool) -> Any:
    """A bar that counts the exchanges of a round while it is collected."""
    return tqdm(desc=f"round {number}: collecting", unit=" exchanges", leave=False, disable=hidden, dynamic_ncols=True)
