"""Two testers that take turns against one target and see each other's turns. `python examples/two_testers.py`.

The second one is trained on its own turns, the first stays as it is: one round of DPO on the second one's records.
"""

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from astra_trl import ASTSampler, HFASTSystem, HFBackend, KeywordScorer, Records, SamplingParams
from astra_trl.sandbox import load_world


def main(conversations: int = 60, output_dir: str = "runs/two_testers") -> Dataset:
    world = load_world()
    sampling, scorer = SamplingParams(max_new_tokens=24), KeywordScorer(world.rude_words)
    first, second = (HFASTSystem(world.tester, world.target, None, scorer, sampling=sampling) for _ in range(2))
    opener = ASTSampler(first, world.openings("train"), tree_width=1, tree_depth=1)
    trees = opener.collect(conversations).trees
    # The conversations so far are the openings of the second tester's turns.
    conversations_so_far = [tree.children[0].exchange.conversation for tree in trees]
    continuer = ASTSampler(second, conversations_so_far, tree_width=4, tree_depth=1)
    trees = continuer.grow(conversations_so_far, range(conversations))

    for tree in trees[:2]:
        opening, probe, response = tree.opening
        print(f" opening: {opening.text}\n tester 1: {probe.text}\n  target: {response.text}")
        exchange = tree.children[0].exchange
        print(f" tester 2: {exchange.probe}\n  target: {exchange.response}\n")

    pairs = Records(trees).preferences(min_margin=0.5)
    assert isinstance(second.tester, HFBackend)
    tokenizer = second.tester.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    config = DPOConfig(
        output_dir,
        num_train_epochs=1,
        learning_rate=5e-4,
        per_device_train_batch_size=4,
        gradient_checkpointing=False,
        save_strategy="no",
        bf16=False,
    )
    DPOTrainer(second.tester.model, args=config, train_dataset=pairs, processing_class=tokenizer).train()
    print(f"the second tester was trained on {len(pairs)} pairs of its own turns")
    return pairs


if __name__ == "__main__":
    main()
