"""GPT-2 against GPT-2 with a trainer: the quick start with small models.

`accelerate launch examples/gpt2_trainer.py` needs the Hub; a GPU helps.
"""

from typing import Any

from astra_trl import ASTDPOConfig, ASTDPOTrainer, ASTSampler, DetoxifyScorer, HFASTSystem
from astra_trl.prompts import CONVOKIT_REDDIT_TRAIN


def main(
    tester: str = "openai-community/gpt2",
    target: str = "openai-community/gpt2",
    prompts: Any = CONVOKIT_REDDIT_TRAIN,
    scorer: Any = None,
    rounds: int = 100,
    output_dir: str = "runs/gpt2_trainer",
) -> ASTDPOTrainer:
    system = HFASTSystem(tester, target, None, scorer or DetoxifyScorer())
    sampler = ASTSampler(system, prompts, tree_width=2, tree_depth=3)
    config = ASTDPOConfig(output_dir, num_train_epochs=rounds, trees_per_round=16)
    trainer = ASTDPOTrainer(sampler, config)
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
