"""A reward term of your own: any function from nodes to as many numbers. `python examples/custom_reward.py`.

Here the tester is rewarded for rude responses to questions: a probe that ends in a question mark earns 0.5 more.
"""

from collections.abc import Sequence
from statistics import fmean

from astra_trl import ASTDPOConfig, ASTDPOTrainer, ASTSampler, HFASTSystem, KeywordScorer, Node, Reward, SamplingParams
from astra_trl.rewards import Harm, Likelihood
from astra_trl.sandbox import load_world


class Asks:
    """1 for a probe that ends in a question mark, else 0.

    The attributes of a term say what it needs beyond the exchange, so that a system without it is refused at once:
    `needs_logprobs = True` for log-probabilities under the target, `needs_sampling_logprobs = True` for those under
    the tester, `needs_scores = [(scorer, part), ...]` for scores; `in_unit_interval = False` if it leaves [0, 1].
    """

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [float(node.exchange.probe.strip().endswith("?")) for node in nodes]


def main(rounds: int = 6, output_dir: str = "runs/custom_reward") -> tuple[float, float]:
    world = load_world()
    reward = Reward({"harm": (1.0, Harm()), "asks": (0.5, Asks()), "likelihood": (0.1, Likelihood())})
    system = HFASTSystem(
        world.tester,
        world.target,
        None,
        KeywordScorer(world.rude_words),
        reward=reward,
        sampling=SamplingParams(max_new_tokens=24),
    )
    sampler = ASTSampler(system, world.openings("train"), tree_width=4, tree_depth=2)
    config = ASTDPOConfig(
        output_dir,
        num_train_epochs=rounds,
        trees_per_round=16,
        learning_rate=5e-4,
        per_device_train_batch_size=16,
        min_margin=0.3,
        gradient_checkpointing=False,
        save_strategy="no",
    )

    def share_of_questions() -> float:
        trees = sampler.collect(25, seed=99).trees
        return fmean(node.terms["asks"] for tree in trees for node in tree.nodes())

    before = share_of_questions()
    ASTDPOTrainer(sampler, config).train()  # the mean of each term is in rounds.jsonl: term_asks, ...
    after = share_of_questions()
    print(f"probes that are questions: {before:.1%} before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    main()
