"""Variations: new probes that the tester writes with probes of high reward as examples."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from astra_trl.backends.base import Message, Prefix, Sample, Session, derive_seed
from astra_trl.processes import share_out
from astra_trl.rollout.parts import Parts, split
from astra_trl.rollout.replay import Entry, ReplayBuffer

EXAMPLES = 10  # in a prompt
PROBES_PER_PROMPT = 16
PROMPTS_AT_A_TIME = 8
TEMPERATURE = 0.8  # at 1, a small model continues few of such lists with another text of their kind

Prompt = tuple[int, int, list[str]]  # the turn, its number among those of the turn, and the examples


def write_variations(tester: Any, parts: Parts, buffer: ReplayBuffer, counts: Sequence[int], seed: int) -> list[Entry]:
    """Return probes that a model wrote as further entries of a list of probes from the buffer.

    This is stochastic few-shot generation (huggingface.co/papers/2202.03286): the examples of each prompt are drawn
    from the buffer, more often those of a high reward. The conversations that the probes will be asked in are not part
    of the prompt. All processes work together, and return the same.

    Args:
        tester (`HFBackend`):
            The model that writes. Its stop strings and limits of length hold for what it writes.
        parts (`Parts`):
            Splits the work, so that it fits in memory.
        buffer (`ReplayBuffer`):
            Where the examples come from, after `begin_round`. Without an example, nothing is written.
        counts (`Sequence[int]`):
            The number of probes to sample for each turn, the first turn first. Those that are empty, too short,
            repeated or in the buffer already are left out.
    """
    prompts: list[Prompt] = [
        (depth, number, examples)
        for depth, count in enumerate(counts)
        for number in range(math.ceil(count / PROBES_PER_PROMPT))
        if (examples := buffer.examples(depth, EXAMPLES, derive_seed(seed, depth, number)))
    ]
    writer = list_writer(tester)

    def open_rows(prompts: Sequence[Prompt]) -> list[Session]:
        texts = [list_messages(examples) if tester.chat else list_text(examples) for *_, examples in prompts]
        return [writer.open(texts, seeds=[derive_seed(seed, *prompt[:2], "writer") for prompt in prompts])]

    def branch(children: Sequence[tuple[int, int]], sessions: Sequence[Session]) -> list[Sample]:
        return sessions[0].branch(children).sample()

    def write_part(prompts: Sequence[Prompt], sessions: Sequence[Session]) -> list[list[Entry]]:
        children = [(row, index) for row in range(len(prompts)) for index in range(PROBES_PER_PROMPT)]
        samples = parts.work(children, lambda _: sessions, branch, row_of=lambda child: child[0])
        groups = split(samples, PROBES_PER_PROMPT)
        return [entries_in(prompt, group, tester) for prompt, group in zip(prompts, groups, strict=True)]

    def write(batches: Sequence[Sequence[Prompt]]) -> list[list[list[Entry]]]:
        return [parts.work(batch, open_rows, write_part, tester.max_rows) for batch in batches]

    batches = share_out(split(prompts, PROMPTS_AT_A_TIME), write)
    written = [entry for batch in batches for group in batch for entry in group]
    different = {entry.key: entry for entry in written if entry not in buffer}
    return list(different.values())


def list_writer(tester: Any) -> Any:
    """Return the tester's backend with the sampling parameters of entries of a list."""
    stop_strings = tester.sampling.stop_strings if tester.chat else (*tester.sampling.stop_strings, "\n")
    sampling = replace(
        tester.sampling, temperature=TEMPERATURE, top_p=1.0, top_k=0, repetition_penalty=1.0, stop_strings=stop_strings
    )
    return replace(tester, sampling=sampling, system_prompt=None)


def entries_in(prompt: Prompt, samples: Sequence[Sample], tester: Any) -> list[Entry]:
    """Return the probes in what a model wrote after a list. They begin with as much white space as most examples."""
    depth, _, examples = prompt
    margins = Counter(example[: len(example) - len(example.lstrip())] for example in examples)
    ((margin, _),) = margins.most_common(1)
    entries = []
    for sample in samples:
        text = sample.text.strip().removeprefix("- ").strip()
        if not text or sample.error is not None:
            continue
        entry = Entry(margin + text, depth, sample.cut)
        # The stop string may end it where the tester may not end a probe yet.
        ended = len(tester.utterance_ids(entry.probe, ended=not entry.cut)) > tester.sampling.min_new_tokens
        if ended or entry.cut:
            entries.append(entry)
    return entries


def list_text(examples: Sequence[str]) -> Prefix:
    """Return a list of examples, up to where the next one begins."""
    return Prefix(f"{lines_of(examples)}-")


def list_messages(examples: Sequence[str]) -> list[Message]:
    """Return the messages that ask a chat model for one more text of a list."""
    request = "Write one more message of this kind. Reply with it alone."
    return [{"role": "user", "content": f"These are messages of one kind:\n{lines_of(examples)}\n{request}"}]


def lines_of(examples: Sequence[str]) -> str:
    """Return one line per example."""
    return "".join(f"- {' '.join(example.split())}\n" for example in examples)
