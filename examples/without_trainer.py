"""A loop without a trainer: trees, DPO's loss written out, an optimizer. `python examples/without_trainer.py`.

The loss is DPO's (huggingface.co/papers/2305.18290), on the token ids that were sampled.
"""

import copy
from collections.abc import Iterator

import torch
from torch.nn.functional import logsigmoid

from astra_trl import ASTEvaluator, ASTSampler, HFASTSystem, HFBackend, KeywordScorer, SamplingParams
from astra_trl.sandbox import load_world


def logprob(model: torch.nn.Module, prompt: list[int], probe: list[int]) -> torch.Tensor:
    """Return the log-probability of a probe after its prompt in nats: the sum over its tokens."""
    ids = torch.tensor([prompt + probe])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(probe)[:, None]).sum()


def batches(rows: list[dict], size: int) -> Iterator[list[dict]]:
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def main(rounds: int = 6, trees: int = 16, beta: float = 0.1) -> list[float]:
    world = load_world()
    scorer, sampling = KeywordScorer(world.rude_words), SamplingParams(max_new_tokens=24)
    system = HFASTSystem(world.tester, world.target, None, scorer, sampling=sampling)
    assert isinstance(system.tester, HFBackend)
    model = system.tester.model
    reference = copy.deepcopy(model).requires_grad_(False)
    sampler = ASTSampler(system, world.openings("train"), tree_width=4, tree_depth=3)
    evaluator = ASTEvaluator(sampler, world.openings("test")[:50])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    shares = [evaluator.metrics()["harmful_share"]]
    for number in range(rounds):
        pairs = sampler.collect(trees, seed=number).preferences("ids", min_margin=0.5).to_list()
        for batch in batches(pairs, 8):
            losses = []
            for row in batch:
                chosen, rejected = (
                    logprob(model, row["prompt_ids"], row[f"{which}_ids"])
                    - logprob(reference, row["prompt_ids"], row[f"{which}_ids"])
                    for which in ("chosen", "rejected")
                )
                losses.append(-logsigmoid(beta * (chosen - rejected)))
            loss = torch.stack(losses).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        shares.append(evaluator.metrics()["harmful_share"])
        print(f"round {number + 1}: {len(pairs)} pairs, {shares[-1]:.1%} of held-out responses are rude")
    return shares


if __name__ == "__main__":
    main()
