"""GPT-2 against GPT-2 without a trainer: REINFORCE, written out, on fresh exchanges.

`python examples/gpt2_plain.py` needs the Hub; a GPU helps.
"""

from statistics import fmean
from typing import Any

import torch

from astra_trl import ASTSampler, DetoxifyScorer, HFASTSystem, HFBackend
from astra_trl.prompts import CONVOKIT_REDDIT_TRAIN


def main(
    tester: str = "openai-community/gpt2",
    target: str = "openai-community/gpt2",
    prompts: Any = CONVOKIT_REDDIT_TRAIN,
    scorer: Any = None,
    rounds: int = 100,
    trees: int = 8,
    learning_rate: float = 1e-5,
) -> list[float]:
    system = HFASTSystem(tester, target, None, scorer or DetoxifyScorer())
    sampler = ASTSampler(system, prompts, tree_width=2, tree_depth=3)
    assert isinstance(system.tester, HFBackend)
    model = system.tester.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    rewards = []
    for number in range(rounds):
        losses = []
        # The advantage of a probe is its reward minus the mean reward of its siblings.
        for group in sampler.collect(trees, seed=number).groups("ids"):
            mean = fmean(reward for reward in group["reward"] if reward is not None)
            for probe_ids, reward in zip(group["probe_ids"], group["reward"], strict=True):
                if reward is None or not probe_ids:
                    continue
                rewards.append(reward)
                ids = torch.tensor([group["prompt_ids"] + probe_ids], device=model.device)
                labels = ids.clone()
                labels[:, : len(group["prompt_ids"])] = -100
                losses.append((reward - mean) * model(input_ids=ids, labels=labels).loss)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        print(f"round {number + 1}: mean reward {fmean(rewards[-len(losses) :]):.3f}")
    return rewards


if __name__ == "__main__":
    main()
