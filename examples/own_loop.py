"""Your own loop over rounds with any of TRL's trainers, here CPO on the preference pairs of each round.

`python examples/own_loop.py`, under a minute on a CPU.
"""

from trl.experimental.cpo import CPOConfig, CPOTrainer

from astra_trl import ASTEvaluator, ASTSampler, HFASTSystem, KeywordScorer, SamplingParams
from astra_trl.sandbox import load_world


def main(rounds: int = 3, trees: int = 24, output_dir: str = "runs/own_loop") -> None:
    world = load_world()
    sampling = SamplingParams(max_new_tokens=24)
    system = HFASTSystem(world.tester, world.target, None, KeywordScorer(world.rude_words), sampling=sampling)
    sampler = ASTSampler(system, world.openings("train"), tree_width=4, tree_depth=3)
    evaluator = ASTEvaluator(sampler, world.openings("test")[:50])
    tokenizer = system.tester.tokenizer
    tokenizer.pad_token = tokenizer.eos_token  # the sandbox's tokenizer has none, and TRL's CPO pads

    for number in range(rounds):
        # The margin leaves out pairs that differ in likelihood alone.
        pairs = sampler.collect(trees, seed=number).preferences(min_margin=0.5)
        trainer = CPOTrainer(
            system.tester.model,
            CPOConfig(
                output_dir,
                num_train_epochs=1,
                learning_rate=5e-4,
                per_device_train_batch_size=8,
                max_length=200,
                save_strategy="no",
                bf16=False,
                gradient_checkpointing=False,
            ),
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        trainer.train()
        share = evaluator.metrics()["harmful_share"]
        print(f"round {number + 1}: learned from {len(pairs)} pairs; {share:.1%} of held-out responses are rude")


if __name__ == "__main__":
    main()
