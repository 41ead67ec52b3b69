"""A sampler of your own: at each turn only the best of n probes is continued. `python examples/beam.py`.

It returns trees, so every trainer accepts it: siblings are compared at each turn.
"""

from collections.abc import Sequence

from astra_trl import (
    ASTDPOConfig,
    ASTDPOTrainer,
    ASTEvaluator,
    ASTSampler,
    HFASTSystem,
    KeywordScorer,
    Node,
    SamplingParams,
    Tree,
)
from astra_trl.backends import derive_seed
from astra_trl.conversation import Opening
from astra_trl.rollout.sampler import OnExchanges, ignored
from astra_trl.sandbox import load_world


def best_of(tree: Tree) -> Node:
    return max(tree.children, key=lambda node: float("-inf") if node.credit is None else node.credit)


class BeamSampler(ASTSampler):
    """Grow `tree_width` probes per turn and continue only the best one: width * depth exchanges per tree."""

    def grow(
        self, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
    ) -> list[Tree]:
        turn = ASTSampler(self.system, self.prompts, self.tree_width, tree_depth=1)
        trees = turn.grow(openings, seeds, on_exchanges)
        best = [best_of(tree) for tree in trees]
        for number in range(1, self.tree_depth):
            # The conversation so far is the opening of the next turn.
            next_trees = turn.grow(
                [node.exchange.conversation for node in best], [derive_seed(s, number) for s in seeds], on_exchanges
            )
            for node, tree in zip(best, next_trees, strict=True):
                node.children = tree.children
            best = [best_of(tree) for tree in next_trees]
        return trees


def main(rounds: int = 14, output_dir: str = "runs/beam") -> tuple[float, float]:
    world = load_world()
    scorer, sampling = KeywordScorer(world.rude_words), SamplingParams(max_new_tokens=24)
    system = HFASTSystem(world.tester, world.target, None, scorer, sampling=sampling)
    sampler = BeamSampler(system, world.openings("train"), tree_width=6, tree_depth=3)
    evaluator = ASTEvaluator(sampler, world.openings("test")[:50])
    before = evaluator.metrics()["harmful_share"]
    config = ASTDPOConfig(
        output_dir,
        num_train_epochs=rounds,
        trees_per_round=32,
        pairs_per_round=64,
        learning_rate=5e-4,
        min_margin=0.5,
        per_device_train_batch_size=16,
        gradient_checkpointing=False,
    )
    ASTDPOTrainer(sampler, config).train()
    after = evaluator.metrics()["harmful_share"]
    print(f"rude held-out responses: {before:.1%} before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    main()
