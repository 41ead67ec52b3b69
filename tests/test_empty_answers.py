"""A target that says nothing: its answer is empty, and nobody stumbles over that."""

import math

import pytest
from conftest import make_gpt2, make_tokenizer
from endpoints import completion, endpoint
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama, save_classifier

from astra_trl import ASTSampler, Exchange, HFASTSystem, HFBackend, KeywordScorer, OpenAIBackend, SamplingParams
from astra_trl.backends import ScriptedBackend
from astra_trl.scorers import (
    ClassifierScorer,
    DetoxifyScorer,
    JudgeScorer,
    LlamaGuardScorer,
    OverlapScorer,
)

EMPTY = [Exchange((), "hi", ""), Exchange((), "", ""), Exchange((), "hi", " \n")]


@pytest.mark.parametrize("kind", ["detoxify", "guard", "classifier", "judge", "keyword", "overlap"])
def test_every_scorer_scores_it(kind, detoxify_files, guard_folder, tmp_path):
    scorer = {
        "detoxify": lambda: DetoxifyScorer(
            checkpoint=str(detoxify_files / "tiny.ckpt"), huggingface_config_path=str(detoxify_files), device="cpu"
        ),
        "guard": lambda: LlamaGuardScorer(str(guard_folder), device="cpu"),
        "classifier": lambda: ClassifierScorer(str(save_classifier(tmp_path, ["fine", "bad"])), ["bad"], device="cpu"),
        "judge": lambda: JudgeScorer(ScriptedBackend(lambda texts, sibling: "no"), "Rude?"),
        "keyword": lambda: KeywordScorer(["fool"]),
        "overlap": lambda: OverlapScorer(["some words that were learned"], n=2),
    }[kind]()
    scores = scorer(EMPTY)
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("chat", [False, True])
def test_a_conversation_goes_on_behind_it(chat):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE) if chat else make_tokenizer()
    model = make_chat_llama(tokenizer) if chat else make_gpt2(tokenizer)
    tester = HFBackend(model, tokenizer, SamplingParams(max_new_tokens=4), chat=chat)
    baseline = HFBackend(model, tokenizer, SamplingParams(max_new_tokens=4), chat=chat)
    with endpoint(lambda request: completion("")) as (url, requests):
        system = HFASTSystem(tester, OpenAIBackend("m", base_url=url), baseline, KeywordScorer(["a"]))
        (tree,) = ASTSampler(system, ["soup"], 2, 3).grow(["soup"], [0])
    nodes = list(tree.nodes())
    assert len(nodes) == len(requests) == 14
    for node in nodes:
        assert (node.exchange.response, node.error, node.reward, node.credit) == ("", None, None, None)
        assert node.scores and all(math.isnan(score) for score in node.scores.values())
        assert node.exchange.probe == "" or not math.isnan(node.terms["likelihood"])
    assert requests[-1]["messages"][-2] == {"role": "assistant", "content": ""}
