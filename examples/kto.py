"""KTO on single exchanges: a label per probe, no pairs. `python examples/kto.py`, under a minute on a CPU."""

import sys

from datasets import concatenate_datasets
from trl import KTOConfig, KTOTrainer

from astra_trl import ASTEvaluator, ASTSampler, HFASTSystem, KeywordScorer, SamplingParams
from astra_trl.sandbox import load_world


def main(trees: int = 40, output_dir: str = "runs/kto") -> None:
    world = load_world()
    sampling = SamplingParams(max_new_tokens=24)
    system = HFASTSystem(world.tester, world.target, None, KeywordScorer(world.rude_words), sampling=sampling)
    sampler = ASTSampler(system, world.openings("train"), tree_width=4, tree_depth=3)
    evaluator = ASTEvaluator(sampler, world.openings("test")[:50])
    before = evaluator.metrics()["harmful_share"]

    exchanges = sampler.collect(trees).transitions()
    exchanges = exchanges.map(lambda row: {"label": row["scores"]["harm"] >= 0.5})
    # Few exchanges are harmful: take all of them, and twice as many others.
    harmful, others = (exchanges.filter(lambda row, wanted=wanted: row["label"] is wanted) for wanted in (True, False))
    if not len(harmful):
        sys.exit(f"no exchange of {trees} trees is harmful: grow more trees")
    others = others.shuffle(seed=0).select(range(min(2 * len(harmful), len(others))))
    dataset = concatenate_datasets([harmful, others]).select_columns(["prompt", "completion", "label"])

    trainer = KTOTrainer(
        system.tester.model,
        args=KTOConfig(
            output_dir,
            num_train_epochs=2,
            learning_rate=5e-4,
            per_device_train_batch_size=16,
            desirable_weight=5.0,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=dataset,
        processing_class=system.tester.tokenizer,
    )
    trainer.train()
    after = evaluator.metrics()["harmful_share"]
    print(f"trained on {len(harmful)} harmful exchanges of {len(exchanges)}, and {len(others)} others")
    print(f"rude held-out responses: {before:.1%} before, {after:.1%} after")


if __name__ == "__main__":
    main()
