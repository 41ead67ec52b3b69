"""Rows of token ids packed so that a beginning that several of them share is there once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile

import torch

Ids = Sequence[int]


@dataclass(frozen=True)
class Packed:
    """Several rows in fewer and fuller ones, for one forward pass.

    Args:
        input_ids (`torch.Tensor`), position_ids (`torch.Tensor`):
            Of shape (packed rows, columns); a position is the token's place in the row that it comes from.
        segments (`torch.Tensor`):
            Segment of each token (packed rows, columns): tokens that belong to the same rows.
        ancestors (`torch.Tensor`):
            Booleans (segments, segments): `ancestors[a, b]` if the tokens of segment `a` come after those of `b` in
            some row, or if both are one segment.
        places (`torch.Tensor`):
            Place of each asked token (rows, tokens) in the flattened `input_ids`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor
    ancestors: torch.Tensor
    places: torch.Tensor

    @property
    def allowed_keys(self) -> torch.Tensor:
        """Booleans (packed rows, queries, keys): the earlier tokens of its own row that a token attends to."""
        columns = self.segments.shape[1]
        causal = torch.ones((columns, columns), dtype=torch.bool, device=self.segments.device).tril_()
        return self.ancestors[self.segments[:, :, None], self.segments[:, None, :]] & causal


@dataclass
class _Trie:
    """Rows that begin alike. A segment is a run of tokens that the same rows share."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    ancestors: list[list[int]] = field(default_factory=list)  # of each segment, itself included
    columns: dict[int, list[int]] = field(default_factory=dict)  # of the tokens of each row

    def add(self, rows: list[tuple[Ids, int]], above: list[int], path: list[int]) -> None:
        """Add sorted rows, each with its number, which have the tokens in the columns `path` in common. `above` are
        the segments of these tokens."""
        first, last = rows[0][0], rows[-1][0]
        start, stop = len(path), shared_length(first, last)
        segment, column = len(self.ancestors), len(self.ids)
        above, path = [*above, segment], [*path, *range(column, column + stop - start)]
        self.ancestors.append(above)
        self.ids += first[start:stop]
        self.positions += range(start, stop)
        self.segments += [segment] * (stop - start)
        for _, number in takewhile(lambda row: len(row[0]) == stop, rows):
            self.columns[number] = path
        longer = [row for row in rows if len(row[0]) > stop]
        for _, group in groupby(longer, key=lambda row: row[0][stop]):
            self.add(list(group), above, path)


def pack(rows: Sequence[Ids], starts: Sequence[int], count: int, hidden: int) -> Packed:
    """Pack rows whose tokens from `starts` on are asked for; the tokens before them are a row's context.

    Rows share the tokens that they begin with if that costs less than it adds: attention takes time for every pair of
    tokens in a packed row, though a token sees only those of its own row.

    Args:
        rows (`Sequence[Sequence[int]]`):
            Token ids; contexts must not be empty.
        starts (`Sequence[int]`):
            Number of tokens of each context.
        count (`int`):
            Tokens that are asked for in each row. `places` has these and the context's last one; after a row's end
            it repeats the last token.
        hidden (`int`):
            The model's hidden size, which says what a token costs beside attention.
    """
    tries = list(_tries(rows, hidden))
    bins = _bins([len(trie.ids) for trie in tries], hidden)
    columns = max(sum(len(tries[member].ids) for member in members) for members in bins)
    shape = (len(bins), columns)
    ids, positions, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(3))  # segment 0 is padding
    ancestors = torch.zeros((1 + sum(len(trie.ancestors) for trie in tries),) * 2, dtype=torch.bool)
    ancestors[0, 0] = True
    places = torch.zeros((len(rows), count + 1), dtype=torch.long)
    segment = 1
    for number, members in enumerate(bins):
        column = 0
        for trie in (tries[member] for member in members):
            part = slice(column, column + len(trie.ids))
            ids[number, part], positions[number, part] = torch.tensor(trie.ids), torch.tensor(trie.positions)
            segments[number, part] = torch.tensor(trie.segments) + segment
            for own, above in enumerate(trie.ancestors):
                ancestors[segment + own, [segment + one for one in above]] = True
            for row, path in trie.columns.items():
                asked = path[starts[row] - 1 :][: count + 1]
                asked += asked[-1:] * (count + 1 - len(asked))
                places[row] = torch.tensor(asked) + number * columns + column
            segment += len(trie.ancestors)
            column = part.stop
    return Packed(ids, positions, segments, ancestors, places)


def shared_length(one: Ids, other: Ids) -> int:
    """Return the number of tokens that two rows begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _tries(rows: Sequence[Ids], hidden: int) -> Iterator[_Trie]:
    together: list[list[int]] = []
    before: Ids = ()
    size = 0  # tokens of the last part
    for number in sorted(range(len(rows)), key=lambda number: list(rows[number])):
        row = rows[number]
        alike = shared_length(before, row)
        longer = size + len(row) - alike
        if alike and _cost(longer, hidden) <= _cost(size, hidden) + _cost(len(row), hidden):
            together[-1].append(number)
            size = longer
        else:
            together.append([number])
            size = len(row)
        before = row
    for members in together:
        trie = _Trie()
        trie.add([(rows[number], number) for number in members], [], [])
        yield trie


def _bins(sizes: Sequence[int], hidden: int) -> list[list[int]]:
    """Return the numbers of the sizes in bins, which become packed rows of one length: at little cost together.

    Longer rows have less padding, and more attention between tokens that do not see each other.
    """

    def fill(room: int) -> tuple[int, list[list[int]]]:
        # The largest first, each into the first bin that has room for it.
        bins: list[list[int]] = []
        filled: list[int] = []
        for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
            place = next((n for n, size in enumerate(filled) if size + sizes[number] <= room), len(bins))
            if place == len(bins):
                bins.append([])
                filled.append(0)
            bins[place].append(number)
            filled[place] += sizes[number]
        return len(bins) * _cost(max(filled), hidden), bins

    rooms = {max(sizes) * quarters // 4 for quarters in (4, 5, 6, 8, 12, 16)} | {sum(sizes)}
    return min(map(fill, sorted(rooms)))[1]


def _cost(tokens: int, hidden: int) -> int:
    # Of a packed row, in a layer: a token costs about 24 hidden^2 operations, and 4 hidden for each token in the row.
    return tokens * (6 * hidden + tokens)
