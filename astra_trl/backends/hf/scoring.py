"""What must be fed of a row, and the log-probabilities that come back for it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Wanted:
    """Ids a model must have seen of a row; log-probabilities are asked for of `ids[scored_from:scored_to]`."""

    ids: list[int]
    scored_from: int = 0
    scored_to: int = 0

    @property
    def first_logit(self) -> int:
        """The position whose logits are needed first: those that tell the token after it."""
        return self.scored_from - 1 if self.scored_to > self.scored_from else len(self.ids) - 1

    def scored(self, logprobs: list[float]) -> list[float]:
        """Those asked for, of the log-probabilities of the row's last ids."""
        end = len(logprobs)
        return logprobs[end - len(self.ids) + self.scored_from : end - len(self.ids) + self.scored_to]


def following_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Natural log-probabilities (rows, positions - 1) of the last ids, each under the logits at the id before it."""
    rows, positions, vocabulary = logits.shape
    # The last position's logits tell what is not there yet: including it saves a copy of all the others.
    followers = ids[:, -positions:].roll(-1, dims=1)
    losses = torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, vocabulary), followers.reshape(-1), reduction="none"
    )
    return -losses.view(rows, positions)[:, :-1]
