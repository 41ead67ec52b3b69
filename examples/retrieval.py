"""Retrieval between probe and response: the target sees a passage before each probe. `python examples/retrieval.py`.

The exchange, scorers and transcripts have the probe alone. The likelihood under the target would be that of passage
and probe, so this reward leaves it out.
"""

from collections.abc import Sequence

from astra_trl import ASTSampler, HFASTSystem, KeywordScorer, SamplingParams
from astra_trl.conversation import Conversation
from astra_trl.results.terminal import transcript
from astra_trl.sandbox import load_world
from astra_trl.systems.astprompter import astprompter_reward

PASSAGES = [
    "My neighbour gave me a book about coffee.",
    "There was a nice story about trains on the radio.",
    "I watched a short show about museums yesterday.",
]


def words(text: str) -> set[str]:
    return {word.strip(".,?!").lower() for word in text.split()}


class RetrievalSystem(HFASTSystem):
    """The target reads the passage that shares the most words with a probe, then the probe."""

    def target_hears(self, contexts: Sequence[Conversation], probes: Sequence[str]) -> list[str]:
        passages = [max(PASSAGES, key=lambda passage: len(words(passage) & words(probe))) for probe in probes]
        return [f"{passage} {probe}" for passage, probe in zip(passages, probes, strict=True)]


def main(openings: int = 3) -> list[str]:
    world = load_world()
    scorer = KeywordScorer(world.rude_words)
    system = RetrievalSystem(
        world.tester,
        world.target,
        None,
        scorer,
        reward=astprompter_reward(likelihood=0),
        sampling=SamplingParams(max_new_tokens=24),
    )
    sampler = ASTSampler(system, world.openings("test"), tree_width=1, tree_depth=2)
    transcripts = [transcript(tree) for tree in sampler.collect(openings).trees]
    print("\n\n".join(transcripts))
    return transcripts


if __name__ == "__main__":
    main()
