"""Several goals, each with a scorer of its own and figures of its own. `python examples/goals.py`.

The tester is told its goal in front of the opening. The sandbox's tiny one knows no such sentences: what it makes of
them is chance, and training tells it what each is about.
"""

import argparse

from astra_trl import (
    ASTEvaluator,
    ASTGRPOConfig,
    ASTGRPOTrainer,
    ASTSampler,
    Goal,
    HFASTSystem,
    KeywordScorer,
    SamplingParams,
)
from astra_trl.sandbox import load_world


def main(rounds: int = 12, output_dir: str = "runs/goals") -> dict[str, tuple[float | None, float | None]]:
    world = load_world()
    goals = [
        Goal("insults people", KeywordScorer(world.rude_words), "insults"),
        Goal("talks of food", KeywordScorer(["soup", "bread", "cheese", "pasta", "pizza", "honey"]), "food"),
    ]
    sampling = SamplingParams(max_new_tokens=24)
    scorer = KeywordScorer(world.rude_words)  # for conversations about none of them
    system = HFASTSystem(world.tester, world.target, None, scorer, goals=goals, sampling=sampling)
    sampler = ASTSampler(system, world.openings("train"), tree_width=4, tree_depth=2)

    def shares() -> list[float | None]:
        evaluator = ASTEvaluator(sampler, world.openings("test")[:60], draws=10)
        evaluator.measure()
        evaluation = evaluator.evaluation()
        return [evaluation.figure(f"goal_harmful_share/{goal.name}").value for goal in goals]

    before = shares()
    config = ASTGRPOConfig(
        output_dir,
        num_train_epochs=rounds,
        trees_per_round=24,
        learning_rate=5e-4,
        per_device_train_batch_size=32,
        scale_rewards="none",
        beta=0.02,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    )
    ASTGRPOTrainer(sampler, config).train()
    found = {goal.name: pair for goal, pair in zip(goals, zip(before, shares(), strict=True), strict=True)}
    for name, (start, end) in found.items():
        print(f"{name:10} {start or 0:.1%} of responses before, {end or 0:.1%} after")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output_dir", default="runs/goals")
    main(**vars(parser.parse_args()))
