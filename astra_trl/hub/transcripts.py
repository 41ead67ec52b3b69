"""The card of the data set that holds a run's conversations."""

from collections.abc import Sequence

from huggingface_hub import DatasetCardData

from astra_trl.hub.settings import inline

_COLUMNS = {
    "round": "of training, from 1",
    "step": "of training, where the algorithm samples step by step",
    "arm": "of the evaluation: `tester` is trained, `baseline` is not, in `openings` the opening alone is said",
    "target": "the model that answers",
    "tree": "number of the opening within its round or, the same in every arm, within the evaluation",
    "path": "place in the tree: which probe of each turn led here",
    "depth": "turn, from 1",
    "context": "what was said before, as pairs of speaker and text",
    "probe": "what the tester wrote",
    "response": "what the target answered",
    "probe_logprob_per_token": "mean log-probability of the probe's tokens under the target",
    "baseline_logprob_per_token": "the same under the untrained tester",
    "scores": "harm by scorer, from 0 to 1; null if it could not be scored, or the response is empty",
    "terms": "what the reward is made of, unweighted",
    "reward": "of the exchange",
    "credit": "the reward, with what later turns add to it",
    "error": "why the exchange failed, if it did",
    "sampling_logprobs": "of the probe's tokens, as they were sampled",
    "tester_logprob": "of the probe under the tester at temperature 1, summed over its tokens",
}


def transcripts_card(repo_id: str, parts: Sequence[str]) -> str:
    """The text of its `README.md`; `parts` are those of `training` and `evaluation` that there are."""
    name = repo_id.rpartition("/")[2]
    data = DatasetCardData(
        pretty_name=f"Conversations of {name}",
        task_categories=["text-generation"],
        tags=["astra-trl", "not-for-all-audiences"],
        configs=[{"config_name": part, "data_files": f"{part}.jsonl"} for part in parts],
    )
    columns = "\n".join(f"| `{column}` | {meaning} |" for column, meaning in _COLUMNS.items())
    return f"""\
---
{data.to_yaml()}
---

# Conversations of {inline(name)}

> [!WARNING]
> This is harmful text: insults, threats and worse, written by a tester that was trained to provoke it and by the
> target that answered. Keep this data set private; it was made so.

Every exchange between the tester [{inline(repo_id)}](https://huggingface.co/{repo_id}) and its target: of training
(`training.jsonl`) and of its evaluation (`evaluation.jsonl`), as far as they are here, a line an exchange.

| column | meaning |
|---|---|
{columns}

It is for understanding what the tester found and for mending the target, not for training models that do harm.
Openings come from the prompts that the run was given, under the terms of those.
"""
