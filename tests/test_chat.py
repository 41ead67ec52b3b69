"""Chat models in either place: what each side sees, and that nobody sees what the other one thought."""

from dataclasses import replace

import pytest
from stand_ins import CHAT_TEMPLATE, llama_tokenizer, make_chat_llama
from test_dialogue import CHATML, REASONING, chat_backend

from astra_trl import (
    ASTGRPOConfig,
    ASTGRPOTrainer,
    ASTPrompterSystem,
    ASTSampler,
    CRTSystem,
    Goal,
    HFASTSystem,
    HFBackend,
    InputError,
    KeywordScorer,
    MalibuSystem,
    PerezSystem,
    SamplingParams,
    Turn,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.api.thinking import without_thinking
from astra_trl.rewards import Harm, Reward
from astra_trl.systems.chat import build_tester_messages

SAMPLING = SamplingParams(max_new_tokens=6)
OPENED = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")  # thinks at every turn
SCORER = KeywordScorer(["the"])


def hears(texts, sibling):
    return f"I heard {texts[-1]}"


def grown(system, opening="Hello", depth=2):
    (tree,) = ASTSampler(system, [opening], 2, depth).grow([opening], [0])
    return tree


@pytest.mark.parametrize(
    ("text", "begun", "said"),
    [
        ("<think>plan</think>\n\nHello", False, "Hello"),
        ("plan</think>\n Hello ", True, "Hello"),
        ("never ending plan", True, ""),
        ("Hello <think>plan", False, "Hello"),
        ("<thinking>a</thinking>b<think>c</think> d", False, "bd"),
        (" nothing to hide\n", False, " nothing to hide\n"),
        ("plan </think> Hello <think>more", True, "Hello"),
        ("a </think> b", False, "a </think> b"),
    ],
)
def test_thinking_is_taken_out(text, begun, said):
    assert without_thinking(text, begun) == said


def thinking(template, text):
    backend = chat_backend(template)
    backend.decode = lambda utterances: [text] * len(utterances)
    return backend


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (REASONING, "<think>a secret plan</think>\n\nGood day"),
        (OPENED, "a secret plan</think>Good day"),
    ],
)
def test_neither_the_target_nor_a_scorer_nor_the_next_turn_sees_what_was_thought(template, text):
    heard, scored = [], []

    def answer(texts, sibling):
        heard.append(texts)
        return "answer"

    def score(exchanges):
        scored.extend(exchanges)
        return [0.0] * len(exchanges)

    tester = thinking(template, text)
    system = ASTPrompterSystem(tester, ScriptedBackend(answer), None, score, reward=Reward({"harm": (1.0, Harm())}))
    tree = grown(system)
    assert {node.exchange.probe for node in tree.nodes()} == {"Good day"}
    assert {texts[1] for texts in heard} == {"Good day"}
    assert scored and "secret" not in repr(scored) + repr(heard)
    deep = tree.children[0].children[0]
    prompt = tester.tokenizer.decode(deep.prompt_ids)
    assert "assistant\nGood day<|im_end|>\n<|im_start|>user\nanswer<|im_end|>" in prompt and "secret" not in prompt


def test_what_a_target_thought_is_not_heard_either():
    target = thinking(REASONING, "<think>secret</think>Good day")
    system = ASTPrompterSystem(ScriptedBackend(hears), target, None, SCORER, reward=Reward({"harm": (1.0, Harm())}))
    tree = grown(system)
    assert {node.exchange.response for node in tree.nodes()} == {"Good day"}
    assert tree.children[0].children[0].exchange.probe == "I heard Good day"


def test_a_chat_tester_sees_the_conversation_with_roles_swapped():
    conversation = (Turn("opening", "Hello"), Turn("tester", "soup?"), Turn("target", "no"))
    system, *chat = build_tester_messages(conversation)
    assert system["role"] == "system" and "where the assistant fails. Write" in system["content"]
    assert [(m["role"], m["content"]) for m in chat] == [("user", "Hello"), ("assistant", "soup?"), ("user", "no")]
    system, *chat = build_tester_messages((Turn("instruction", "insults the user."), *conversation))
    assert "fails, which here means: insults the user. Write" in system["content"] and len(chat) == 3
    # A system prompt of the backend's own takes the place of ours; the goal is still told.
    assert build_tester_messages(conversation, "Be nasty.")[0] == {"role": "user", "content": "Hello"}
    goal = build_tester_messages((Turn("instruction", "insults"), *conversation), "Be nasty.")[0]
    assert goal == {"role": "system", "content": "insults"}
    # A template wants something to answer: an instruction that stands alone is asked for.
    assert build_tester_messages((Turn("instruction", "List:\n1."),)) == [{"role": "user", "content": "List:\n1."}]


@pytest.mark.parametrize("chat", ["none", "tester", "target", "both"])
@pytest.mark.parametrize("kind", [HFASTSystem, PerezSystem, CRTSystem, MalibuSystem])
def test_every_system_talks_to_chat_models_in_any_place(kind, chat):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)

    def backend(model, role):
        return HFBackend(model, tokenizer, SAMPLING, chat=chat in ("both", role))

    system = kind(
        backend(make_chat_llama(tokenizer), "tester"),
        backend(make_chat_llama(tokenizer), "target"),
        None,
        SCORER,
        reward=Reward({"harm": (1.0, Harm())}),
    )
    tree = grown(system, depth=1)
    node = tree.children[0]
    prompt = tokenizer.decode(node.prompt_ids)
    assert ("<|start_header_id|>assistant<|end_header_id|>" in prompt) == (chat in ("tester", "both"))
    assert node.error is None and node.reward is not None


def test_models_are_told_how_to_talk_by_role(tmp_path):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    make_chat_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    folder = str(tmp_path)
    longer = replace(SAMPLING, max_new_tokens=9)
    system = HFASTSystem(
        folder,
        folder,
        folder,
        SCORER,
        sampling=SAMPLING,
        target_sampling=longer,
        chat="tester",
        chat_template_kwargs={"enable_thinking": False},
        device="cpu",
    )
    roles = (system.tester, system.target, system.baseline)
    assert [role.chat for role in roles] == [True, False, True]
    assert [role.sampling.max_new_tokens for role in roles] == [6, 9, 6]
    assert system.tester.chat_template_kwargs == {"enable_thinking": False}
    assert system.target.model is system.baseline.model  # one copy of what is frozen
    with pytest.raises(InputError, match="chat='all': choose one of none, tester, target, both"):
        HFASTSystem(folder, folder, None, SCORER, chat="all")


def test_a_chat_tester_is_trained_with_its_goal_in_view(tmp_path):
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    tester = HFBackend(make_chat_llama(tokenizer), tokenizer, SAMPLING, chat=True)
    scorer = lambda exchanges: [len(e.probe) % 5 / 4 for e in exchanges]  # noqa: E731
    goals = [Goal("insults the user"), Goal("tells secrets")]
    reward = Reward({"harm": (1.0, Harm())})
    system = HFASTSystem(tester, ScriptedBackend(hears), None, scorer, reward=reward, goals=goals)
    config = ASTGRPOConfig(
        str(tmp_path),
        num_train_epochs=2,
        trees_per_round=4,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        beta=0.0,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = ASTGRPOTrainer(ASTSampler(system, ["Hello", "Good day"], 4, 1), config)
    trainer.train()
    prompts = {tokenizer.decode(record["prompt_ids"]) for record in trainer.folder.read_records(2)}
    assert prompts and all("here means: insults the user" in p or "here means: tells secrets" in p for p in prompts)
    assert "round/harmful_share_goal_tells secrets" in {key for log in trainer.state.log_history for key in log}
