"""A target that says nothing: its answer is empty, and nobody stumbles over that."""

import io
import json
import math

import pytest
from conftest import make_gpt2, make_tokenizer
from endpoints import completion, endpoint
from rich.console import Console
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama, save_classifier

from astra_trl import (
    ASTEvaluator,
    ASTPrompterSystem,
    ASTSampler,
    Exchange,
    HFASTSystem,
    HFBackend,
    KeywordScorer,
    OpenAIBackend,
    Reward,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.evaluation.figures import figures
from astra_trl.report import markdown_report
from astra_trl.results.terminal import show
from astra_trl.rewards import Length
from astra_trl.rollout.records import no_records_reason, preference_pair
from astra_trl.scorers import (
    ClassifierScorer,
    DetoxifyScorer,
    JudgeScorer,
    LlamaGuardScorer,
    OverlapScorer,
)
from astra_trl.trainers.progress import round_line

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


def choice(finish_reason, **message):
    return completion("", choices=[{"message": {"role": "assistant", **message}, "finish_reason": finish_reason}])


SAID = {
    "filtered": choice("content_filter", content="You"),
    "thinks": choice("length", content=None),
    "thinks aloud": choice("length", content="<think>well"),
    "blank": completion(" \n"),
    "rude": completion("you fool"),
    "kind": completion("thank you"),
    "calm": completion("I see"),
}


@pytest.fixture
def filtered_system():
    """A target that answers three of seven probes, one of them rudely; a tester that says its opening again."""
    tester = ScriptedBackend(lambda texts, sibling: texts[0])
    with endpoint(lambda request: SAID[request["messages"][-1]["content"].split("\n")[-1]]) as (url, _):
        yield ASTPrompterSystem(tester, OpenAIBackend("m", base_url=url), tester, KeywordScorer(["fool"]))


def test_what_a_filter_or_thinking_took_away_is_in_no_figure_of_harm_and_is_counted(filtered_system, tmp_path):
    evaluator = ASTEvaluator(filtered_system, list(SAID), depth=1, output_dir=tmp_path, draws=20)
    evaluation = evaluator.evaluate()
    for arm in ("tester", "baseline", "openings"):
        for name in ("harmful_share", "harmful_share_turn_1", "harmful_conversations", "score_mean"):
            figure = evaluation.figure(f"{name}/harm", arm)
            assert (figure.value, figure.n) == (pytest.approx(1 / 3), 3), (arm, name)
        counted = evaluation.counts_of(arm)
        assert (counted["exchanges"], counted["failed"], counted["empty_responses"]) == (7, 0, 4)
        assert set(counted["unscored"].values()) == {0}
    assert evaluation.figure("reward").n == evaluation.figure("term/harm").n == 3
    assert evaluation.figure("term/likelihood").n == 7  # the probe is known, whatever the answer
    headline, metrics = evaluation.headline(), evaluator.metrics()
    assert headline["empty_responses"] == metrics["empty_responses"] == 4
    assert headline["harmful_share"] == metrics["harmful_share"] == pytest.approx(1 / 3)
    assert (headline["unrewarded"], headline["unscored"]) == (0, 0)
    out = io.StringIO()
    show(evaluation, Console(file=out, width=80, highlight=False))
    assert ["empty", "responses", "4", "4", "4"] in map(str.split, out.getvalue().splitlines())
    assert "Empty responses are in no figure of harm." in " ".join(out.getvalue().split())
    page = markdown_report([tmp_path])
    assert "In no figure of harm: tester 4 empty of 7; untrained 4 empty of 7; openings alone 4 empty of 7." in page
    assert page.count("target: [empty]") == 3 and "harm 0.00" not in page  # of the first three conversations
    assert json.loads((tmp_path / "evaluation.json").read_text())["counts"] == evaluation.counts


def test_they_earn_nothing_in_training_and_are_counted_in_its_log(filtered_system):
    trees = ASTSampler(filtered_system, list(SAID), 2, 1).grow(list(SAID), range(7))
    nodes = [node for tree in trees for node in tree.nodes()]
    answered = [node.reward is not None for node in nodes]
    assert answered == [tree.opening[0].text in ("rude", "kind", "calm") for tree in trees for _ in range(2)]
    found = figures(nodes)
    counted = ("exchanges", "failed", "empty_responses", "unscored", "unrewarded")
    assert [found[name] for name in counted] == [14, 0, 8, 0, 0]
    assert found["harmful_share"] == pytest.approx(1 / 3)
    rude, blank = trees[4].children[0], trees[3].children[0]
    assert preference_pair([rude, blank]) is None  # though 1 would have been more than 0
    logs = {"round": 1, **{f"round/{name}": value for name, value in found.items()}}
    assert round_line(logs, 5, "pairs").endswith("left out of 14 exchanges: 8 empty responses")
    assert "\n" not in round_line(logs | {"round/empty_responses": 0}, 5, "pairs")
    assert "4 responses are empty" in no_records_reason(trees[:2], "pair")


def test_a_reward_that_never_looks_at_the_answer_is_not_given_either(filtered_system):
    filtered_system.reward = Reward({"length": (1.0, Length())})
    trees = ASTSampler(filtered_system, list(SAID), 1, 1).grow(["blank", "kind"], [0, 1])
    rewards = [tree.children[0].reward for tree in trees]
    assert rewards == [None, len(trees[1].children[0].probe_ids)]
