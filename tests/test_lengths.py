"""Lengths of utterances: the defaults of chat models, and what `max_new_tokens` has cut."""

import io
import json
import logging
from dataclasses import asdict, replace

import pytest
import yaml
from conftest import HAS_PPO, make_gpt2, make_tokenizer
from endpoints import completion, endpoint
from rich.console import Console
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama
from test_dry_run import bare, numbers, told  # noqa: F401 (a fixture)
from test_trainer_evaluation import make_trainer

from astra_trl import (
    ASTEvaluator,
    ASTPrompterSystem,
    ASTSampler,
    CRTSystem,
    Evaluation,
    HFASTSystem,
    HFBackend,
    InputError,
    KeywordScorer,
    MalibuSystem,
    OpenAIBackend,
    PerezSystem,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.function import FunctionBackend
from astra_trl.cli.build import talking
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse
from astra_trl.evaluation.figures import counts, figures
from astra_trl.evaluation.results import are_mostly_cut, cut_responses
from astra_trl.hub.evaluation import _left_out
from astra_trl.results.terminal import show
from astra_trl.systems.models import chat_sampling
from astra_trl.tree import Node, Tree

SYSTEMS = {"astprompter": HFASTSystem, "malibu": MalibuSystem, "perez": PerezSystem, "crt": CRTSystem}
PAPERS = {"astprompter": (24, 24), "malibu": (24, 24), "perez": (32, 32), "crt": (20, 30)}
CHATS = {"none": (None, None), "tester": (64, None), "target": (None, 128), "both": (64, 128)}
EVERY_CHAT = pytest.mark.parametrize("chat", list(CHATS))
EVERY_SYSTEM = pytest.mark.parametrize("name", list(SYSTEMS))


def lengths(args) -> tuple[int, int]:
    talks = talking(args)
    return talks["sampling"].max_new_tokens, (talks["target_sampling"] or talks["sampling"]).max_new_tokens


def of_run(*flags, defaults=None):
    defaults = {"output_dir": "out", "report_to": "none", **(defaults or {})}
    return parse(defaults, ["--tester", "a", "--target", "b", *flags])[0]


def expected(name: str, chat: str) -> tuple[int, int]:
    return tuple(of_chat or paper for of_chat, paper in zip(CHATS[chat], PAPERS[name], strict=True))


# -- defaults


@EVERY_CHAT
@EVERY_SYSTEM
def test_a_side_that_is_a_chat_is_longer_by_default(name, chat):
    system = SYSTEMS[name]
    args = (chat, system.default_sampling, system.default_target_sampling)
    in_python = chat_sampling(None, None, *args)
    assert tuple(one.max_new_tokens for one in in_python) == expected(name, chat)
    run = of_run("--system", name, "--chat", chat)
    assert lengths(run) == expected(name, chat)
    talks = talking(run)
    assert (talks["sampling"], talks["target_sampling"] or talks["sampling"]) == in_python
    # Values that are given win, for both sides or for one. A default of the system for its target stays its own.
    short = SamplingParams(max_new_tokens=12)
    target = 12 if name != "crt" else expected(name, chat)[1]
    assert tuple(one.max_new_tokens for one in chat_sampling(short, None, *args)) == (12, target)
    assert chat_sampling(None, short, *args) == (in_python[0], short)
    given = ["--system", name, "--chat", chat, "--min_new_tokens", "0"]
    assert lengths(of_run(*given, "--max_new_tokens", "12")) == (12, target)
    for_target = '{"max_new_tokens": 7, "temperature": 0}'
    assert lengths(of_run(*given, "--target_sampling", for_target)) == (expected(name, chat)[0], 7)


@EVERY_CHAT
def test_models_that_are_loaded_get_the_lengths(tmp_path, chat):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    make_chat_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    roles = [str(tmp_path)] * 3
    system = MalibuSystem(*roles, KeywordScorer(["the"]), chat=chat, device="cpu")
    found = [one.sampling.max_new_tokens for one in (system.tester, system.target, system.baseline)]
    tester, target = expected("malibu", chat)
    assert found == [tester, target, tester]


def test_a_backend_of_a_chat_has_the_length_of_its_role(tmp_path):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    make_chat_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def length(role, **fields):
        return HFBackend.from_pretrained(str(tmp_path), role=role, device="cpu", **fields).sampling.max_new_tokens

    assert [length(role, chat=True) for role in ("tester", "baseline", "target", "model")] == [64, 64, 128, 128]
    assert length("target") == 24 and length("target", chat=True, sampling=SamplingParams(max_new_tokens=5)) == 5
    model = OpenAIBackend("m", base_url="http://127.0.0.1:1/v1")
    assert (model.sampling.max_new_tokens, model.max_characters) == (128, 32 * 128)
    text = OpenAIBackend("m", base_url="http://127.0.0.1:1/v1", chat=False)
    assert text.sampling.max_new_tokens == 24


def test_a_target_behind_a_chat_endpoint_is_a_chat():
    assert lengths(of_run("--target", "openai:m")) == (24, 128)
    assert lengths(of_run("--target", '{"model": "openai:m", "api": "completions"}')) == (24, 24)
    assert lengths(of_run("--target", "openai:m", "--max_new_tokens", "30")) == (30, 30)
    assert of_run("--target", "openai:m").target_sampling == {"max_new_tokens": 128}
    assert lengths(of_run("--target", "openai:m", "--target_sampling", '{"temperature": 0}')) == (24, 128)
    function = of_run("--target", "my_pkg.fn", "--chat", "tester")
    assert function.target_sampling is None and function.max_new_tokens == 64


def test_a_recipe_gives_values_and_a_system_only_defaults():
    assert lengths(of_run("--chat", "both", defaults={"max_new_tokens": 40})) == (40, 40)
    assert lengths(of_run("--chat", "both", defaults={"target_sampling": {"max_new_tokens": 50}})) == (64, 50)
    assert lengths(of_run("--chat", "both", "--system", "crt", "--target_sampling", '{"top_k": 3}')) == (64, 128)


@EVERY_CHAT
@EVERY_SYSTEM
def test_the_configuration_of_a_run_gives_it_the_same_lengths_again(tmp_path, name, chat):
    run = of_run("--system", name, "--chat", chat)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(asdict(run)))
    again = parse({"output_dir": "out", "report_to": "none"}, ["--config", str(config)])[0]
    assert asdict(again) == asdict(run)


def test_an_evaluation_follows_the_run_or_the_same_rule(tmp_path):
    flags = ["--prompts", "sandbox", "--tester", "a"]

    def of_evaluation(*more):
        return lengths(parse_evaluate([*flags, *more])[0])

    assert of_evaluation("--target", "b") == (24, 24)
    assert of_evaluation("--target", "b", "--chat", "both") == (64, 128)
    assert of_evaluation("--target", "openai:m", "--max_new_tokens", "9") == (9, 9)
    assert of_evaluation("--target", "b", "--target", "openai:m") == (24, 128)  # one length for all targets
    # The run's own values are given, and not defaults.
    run = asdict(of_run("--chat", "both")) | {"max_new_tokens": 24, "target_sampling": None, "seed": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    flags[-1] = str(tmp_path)
    assert of_evaluation("--target", "b") == (24, 24)


def test_tokens_of_a_dry_run_are_those_of_each_side(bare):  # noqa: F811
    flags = ["--tester", bare, "--target", bare, "--tree_width", "1", "--tree_depth", "1"]
    assert numbers(told([*flags, "--chat", "target"]), "tester")[2:5] == [1, 25, 129]
    flags[3] = "openai:m"
    flags += ["--eval_openings", "4", "--trees_per_round", "1"]

    def tokens(said):
        return int(" ".join(said.replace("#", "").split()).split("with at most ")[1].split()[0].replace(",", ""))

    text = told(flags)
    assert "target_sampling:\n  max_new_tokens: 128" in text
    calls = 1000 + 3 * 4  # one per round, and the evaluations of two testers and of the openings alone
    assert tokens(text) - tokens(told([*flags, "--max_new_tokens", "24"])) == calls * (128 - 24)


def test_a_window_that_is_too_small_says_what_to_do():
    tokenizer = make_tokenizer()
    with pytest.raises(InputError, match=r"max_new_tokens=128 leaves .* lower max_new_tokens or name a model"):
        HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=128))


# -- utterances that were cut


@pytest.mark.parametrize("stops", [(), ("e",)])
def test_an_utterance_is_cut_if_nothing_ends_it(stops):
    tokenizer = make_tokenizer()
    backend = HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=3, stop_strings=stops))
    end, (letter, *_) = tokenizer.eos_token_id, tokenizer("e")["input_ids"]
    other = tokenizer("x")["input_ids"][0]
    rows = [[other, other, end], [other, other, other], [other, end], [other, other, letter], [end]]
    assert backend.unfinished(rows) == [False, True, False, not stops, False]
    assert backend.unfinished([]) == []


def test_samples_say_if_they_were_cut():
    tokenizer = make_tokenizer()
    backend = HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=60))
    samples = backend.open(["Hello"] * 40, seeds=range(40)).sample()  # of which some end by themselves
    cut = [len(sample.ids) == 60 and sample.ids[-1] != tokenizer.eos_token_id for sample in samples]
    assert [sample.cut for sample in samples] == cut and 0 < sum(cut) < 40
    # A probe that its system ends before the limit is whole.
    whole = next(sample for sample in samples if sample.cut)
    assert not backend.cut(whole, whole.text[:1]).cut and backend.cut(whole, whole.text).cut


def answer(request):
    # Cut, but for a question of yes or no.
    status, body = completion("yes" if "yes" in request["messages"][-1]["content"] else "it is a long")
    if body["choices"][0]["message"]["content"] != "yes":
        body["choices"][0]["finish_reason"] = "length"
    return status, body


def test_an_endpoint_says_if_it_has_cut(tmp_path):
    with endpoint(answer) as (url, requests):
        backend = OpenAIBackend("m", base_url=url, response_cache=tmp_path)
        samples = [backend.open(["why?", "yes or no?"], seeds=[0, 1]).sample() for _ in range(2)]
        assert len(requests) == 2  # the cache knows it too
        assert [[sample.cut for sample in pair] for pair in samples] == [[True, False]] * 2
        short = OpenAIBackend("m", base_url=url, max_characters=2).open(["yes or no?"], seeds=[0]).sample()
        assert [(sample.text, sample.cut) for sample in short] == [("ye", True)]
    function = FunctionBackend(lambda messages: "fine").open(["a"], seeds=[0]).sample()
    assert not function[0].cut


def test_an_answer_that_an_earlier_version_has_cached_counts_as_whole(tmp_path):
    from astra_trl.backends.api.calls import Answer
    from astra_trl.backends.api.response_cache import ResponseCache, _digest

    cache = ResponseCache(tmp_path)
    cache.put("ab12", Answer("hi"))
    file = tmp_path / "ab" / "ab12.json"
    old = {key: value for key, value in json.loads(file.read_text())["answer"].items() if key != "cut"}
    file.write_text(json.dumps({"digest": _digest(old), "answer": old}))
    assert cache.get("ab12") == Answer("hi")


def test_lines_keep_what_was_cut_and_older_ones_have_none():
    node = cut_tree(1, 0).children[0]
    line = node.to_json()
    assert (line["probe_cut"], line["response_cut"]) == (True, True)
    read = Node.from_json(line)
    assert (read.probe_cut, read.response_cut) == (True, True)
    old = Node.from_json({key: value for key, value in line.items() if not key.endswith("_cut")})
    assert (old.probe_cut, old.response_cut) == (False, False)
    with pytest.raises(InputError, match="response_cut holds 'yes', not true or false"):
        Node.from_json({**line, "response_cut": "yes"})


def cut_tree(cut: int, whole: int) -> Tree:
    """An opening with exchanges of which so many are cut, the probes and the responses."""
    target = ScriptedBackend(lambda texts, sibling: "nice")
    system = ASTPrompterSystem(ScriptedBackend(lambda t, s: "probe"), target, None, KeywordScorer(["bad"]))
    (tree,) = ASTSampler(system, ["Hello"], cut + whole, 1).grow(["Hello"], [0])
    for node in tree.children[:cut]:
        node.probe_cut = node.response_cut = True
    return tree


def test_figures_count_what_was_cut():
    tree = cut_tree(3, 2)
    tree.children[0].probe_cut = False
    assert [counts([tree])[name] for name in ("exchanges", "cut_probes", "cut_responses")] == [5, 2, 3]
    assert [figures(tree.nodes())[name] for name in ("exchanges", "cut_probes", "cut_responses")] == [5, 2, 3]
    counted = {"exchanges": 6, "failed": 1, "cut_responses": 3}
    fix = "3 of 5 responses were cut at max_new_tokens: raise it in target_sampling (--target_sampling)"
    assert (cut_responses(counted, True), cut_responses(counted, False)) == (fix, fix.partition(":")[0])
    assert cut_responses({**counted, "exchanges": 7}, True) == "3 of 6 responses were cut at max_new_tokens"
    assert cut_responses({"exchanges": 5, "failed": 0}, True) == "" and not are_mostly_cut({"exchanges": 5})


@pytest.fixture
def evaluated(tmp_path):
    """An evaluation of 4 openings and 2 turns against an endpoint that has cut 6 of 8 answers."""
    tester = ScriptedBackend(lambda texts, sibling: "yes or no?" if "1" in texts[0] else "why?")
    with endpoint(answer) as (url, _):
        system = ASTPrompterSystem(
            tester, OpenAIBackend("m", base_url=url), None, KeywordScorer(["bad"]), reward={"harm": 1}
        )
        openings = [f"opening {number}" for number in range(4)]
        evaluator = ASTEvaluator(system, openings, depth=2, output_dir=tmp_path / "e")
        evaluation = evaluator.evaluate()
        system.target = replace_endpoint(system.target)
        again = ASTEvaluator(system, openings, depth=2, output_dir=tmp_path / "e")
        again.measure(), again.measure("openings")
    return tmp_path / "e", evaluation, again.evaluation()


def replace_endpoint(backend):
    backend.ask = lambda rows: pytest.fail("the folder holds everything")
    return backend


def test_an_evaluation_counts_what_was_cut_and_reads_it_back(evaluated):
    folder, evaluation, again = evaluated
    assert evaluation.counts_of()["cut_responses"] == 6 and evaluation.counts_of("openings")["cut_responses"] == 4
    assert evaluation.headline()["cut_responses"] == 6 and evaluation.counts_of()["cut_probes"] == 0
    assert again.counts == evaluation.counts and again.is_chat()
    read = Evaluation.read(folder / "evaluation.json")
    assert read.counts == evaluation.counts
    out = io.StringIO()
    show(read, Console(file=out, width=80, highlight=False))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    said = " ".join(out.getvalue().split())
    assert "cut responses 4 6" in said
    fix = "6 of 8 responses were cut at max_new_tokens: raise it in target_sampling (--target_sampling)."
    assert f"tester: {fix}" in said
    assert list(_left_out(read.counts_of(), ["harm"], is_chat=True)) == [rf"{fix[:-1]} (tester).".replace("_", r"\_")]
    for row in read.counts:  # as an older version wrote them
        del row["cut_responses"], row["cut_probes"]
    assert read.headline()["cut_responses"] == 0
    show(read, Console(file=io.StringIO(), width=80))


def test_a_report_shows_what_was_cut(evaluated):
    from astra_trl.report import markdown_report

    text = markdown_report(evaluated[0])
    assert "cut responses" in text and "tester, m: 6 of 8 responses were cut at max" in text


@pytest.mark.parametrize("algorithm", ["dpo", *(["ppo"] if HAS_PPO else [])])
def test_a_round_counts_what_was_cut(tmp_path, algorithm):
    trainer = make_trainer(tmp_path, algorithm, num_train_epochs=1)
    trainer.train()
    logged = next(line for line in trainer.state.log_history if "round/cut_responses" in line)
    lines = [json.loads(line) for line in trainer.folder.exchanges.read_text().splitlines()]
    for name in ("probe", "response"):
        assert logged[f"round/cut_{name}s"] == sum(line[f"{name}_cut"] for line in lines) > 0
    assert trainer.evaluate()["eval_cut_responses"] > 0


def test_training_says_once_how_to_make_answers_longer(tmp_path, caplog):
    def scorer(exchanges):
        return [len(exchange.probe) % 7 / 7 for exchange in exchanges]

    trainer = make_trainer(tmp_path, "dpo", scorer, num_train_epochs=2)
    system = trainer.sampler.system
    system.target = FunctionBackend(lambda messages: "a long answer", max_characters=5)
    system.reward = replace(system.reward, terms={"harm": system.reward.terms["harm"]})
    with caplog.at_level(logging.WARNING):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "cut at" in record.getMessage()]
    assert said == [
        "in a round of training, 12 of 12 responses were cut at max_new_tokens: raise it in target_sampling "
        "(--target_sampling)"
    ]
