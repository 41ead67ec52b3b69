"""What a dry run tells, against what the real thing loads and reads; no weights are there for it to load."""

import json
import re

import pytest
import torch
import yaml
from conftest import HAS_PPO, keyword_flags, make_llama, make_tokenizer
from peft import LoraConfig, get_peft_model
from stand_ins import save_classifier
from transformers import AutoModelForCausalLM, AutoTokenizer, Mamba2Config, MistralConfig

from astra_trl import ASTSampler, HFASTSystem, InputError, KeywordScorer, Turn
from astra_trl.cli.dry_run import dry_run
from astra_trl.cli.parse_train import parse
from astra_trl.cli.sizes import Loading, adapter_parameters, size_of, tokenizer_of
from astra_trl.sandbox import load_world
from astra_trl.sandbox.defaults import SANDBOX

ALGORITHMS = ["dpo", "gfn", "grpo", "rloo", *(["ppo"] if HAS_PPO else [])]
OPENINGS = ["Good morning", "The train was late again, and it rained all day."]


@pytest.fixture
def bare(gpt2_folder, tmp_path):
    """A GPT-2's config and tokenizer without its weights."""
    folder = tmp_path / "bare"
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(folder)
    (folder / "config.json").write_bytes((gpt2_folder / "config.json").read_bytes())
    return str(folder)


def told(flags, algorithm="dpo", openings=OPENINGS, defaults=None):
    return dry_run(*parse({"algorithm": algorithm, **(defaults or {})}, flags), openings)


def about(text: str) -> dict[str, str]:
    """What is said of each role, on one line each."""
    joined = re.sub(r"\n#   (?! )", " ", text)
    return dict(re.findall(r"^# ([\w:./ -]+?): (.*)$", joined, re.MULTILINE))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_printed_is_a_configuration_of_the_same_run(algorithm, bare, tmp_path):
    config = tmp_path / "run.yaml"
    flags = ["--tester", bare, "--target", bare, "--world", "embedded", "--learning_rate", "5e-7", "--use_peft"]
    flags += [
        "--lora_target_modules",
        "c_attn",
        "c_proj",
        "--held_out_scorers",
        '{"type": "keyword", "words": ["yes"]}',
    ]
    flags += ["--report_to", "tensorboard", "--lr_scheduler_kwargs", '{"x": 1}', "--hub_token", "secret"]
    given = parse(SANDBOX[algorithm], [*flags, "--output_dir", "out: 1", "--top_p", "0.8", "--dry_run"])
    text = dry_run(*given, OPENINGS)
    assert max(len(line) for line in text.splitlines() if bare not in line) <= 80
    config.write_text(text)
    again = parse({}, ["--config", str(config)])
    assert again[0] == type(given[0])(**{**vars(given[0]), "dry_run": False})
    assert again[2] == given[2]
    known = {**given[1].to_dict(), "hub_token": None}
    assert {key: known[key] for key in known} == {**again[1].to_dict(), "hub_token": None}
    assert "secret" not in text and "HUB_TOKEN" not in text
    settings = yaml.safe_load(text)
    assert settings["algorithm"] == algorithm and settings["learning_rate"] == 5e-7
    # Only what was set: not what a config derives from that, which would stay behind when it is changed.
    assert not {"generation_batch_size", "adam_beta1", "bf16", "dry_run", "lora_r"} & settings.keys()


def test_nothing_is_loaded_or_written(bare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    text = told(["--tester", bare, "--target", bare, "--output_dir", str(tmp_path / "run")])
    assert "parameters in float32" in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_sizes_are_those_of_loaded_weights(dtype, tmp_path):
    llama = make_llama(make_tokenizer(bos=True)).to(torch.float16)
    llama.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    role = size_of(str(tmp_path), "tester", Loading(dtype))
    assert role.size_bytes == sum(parameter.nbytes for parameter in loaded.parameters())
    name = {"auto": "float16"}.get(dtype, dtype)
    assert f"{sum(parameter.numel() for parameter in loaded.parameters()):,} parameters in {name}," in role.text
    lora = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(loaded, lora)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert adapter_parameters(str(tmp_path), lora, Loading(dtype)) == trained
    with pytest.raises(InputError, match="no adapter fits"):
        adapter_parameters(str(tmp_path), LoraConfig(target_modules=["nothing", "of it"]), Loading(dtype))


def test_quantized_weights_take_their_bits(bare):
    whole, four, eight = (size_of(bare, "tester", Loading("float32", bits)).size_bytes for bits in (None, 4, 8))
    linear = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)  # of both layers: attention, its output, the two of the MLP
    assert whole - eight == linear * 3
    assert whole - four == linear * 3.5


def weights(text: str) -> float:
    """The total in MB."""
    return float(re.search(r"weights: ([\d.]+) MB", text)[1])


def test_roles_that_share_weights_are_told_and_counted_once(bare, gpt2_folder):
    one = size_of(bare, "tester", Loading("float32")).size_bytes / 1e6
    flags = ["--tester", bare, "--target", bare, *keyword_flags("a")]
    text = told(flags)
    assert about(text)["tester"].endswith("trained: all")
    assert "copy of the tester before training" in about(text)["baseline"]
    assert about(text)["scorer"] == "keyword (words ['a'])"
    assert weights(text) == pytest.approx(3 * one, abs=0.06)

    text = told([*flags, "--baseline", bare])
    assert about(text)["baseline"] == "the target's weights"
    assert weights(text) == pytest.approx(2 * one, abs=0.06)

    peft = [*flags, "--use_peft", "--lora_target_modules", "c_attn", "c_proj", "--lora_r", "4"]
    text = told(peft)
    off = "the tester's weights with the adapter off"
    assert (about(text)["target"], about(text)["baseline"]) == (off, off)
    assert "trained: 2,816 more of an adapter" in about(text)["tester"]
    assert weights(text) == pytest.approx(one + 2816 * 4 / 1e6, abs=0.06)

    text = told([*peft, "--target", str(gpt2_folder)])
    assert about(text)["target"].startswith(str(gpt2_folder)) and about(text)["baseline"] == off
    assert weights(text) == pytest.approx(2 * one + 2816 * 4 / 1e6, abs=0.06)

    assert about(told([*flags, "--beta", "0"], "grpo"))["baseline"] == "none, as beta is 0"
    assert about(told([*flags, "--beta", "0.1"], "grpo"))["baseline"].startswith("a copy of the tester")
    if "ppo" in ALGORITHMS:
        text = told(flags, "ppo")
        assert about(text)["value model"].startswith("a head on a copy of the tester")
        assert weights(text) == pytest.approx(4 * one, abs=0.06)
        assert about(told(peft, "ppo"))["value model"] == f"a head on {off}"


def test_a_folder_of_an_adapter_is_its_base_model(bare, gpt2_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    get_peft_model(model, LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "a")
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(tmp_path / "a")
    assert (
        size_of(str(tmp_path / "a"), "target", Loading("float32")).size_bytes
        == size_of(bare, "tester", Loading("float32")).size_bytes
    )


@pytest.mark.parametrize("use_peft", ["true", "false"])
def test_a_tester_that_is_an_adapter_is_trained_further(bare, gpt2_folder, tmp_path, use_peft):
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    adapted = get_peft_model(model, LoraConfig(target_modules=["c_attn"], r=4, task_type="CAUSAL_LM"))
    count = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    adapted.save_pretrained(tmp_path / "a")
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(tmp_path / "a")
    flags = ["--tester", str(tmp_path / "a"), "--target", str(gpt2_folder), "--use_peft", use_peft]
    found = about(told(flags))
    assert found["tester"].endswith(f"trained: {count:,} more of an adapter that is there")
    assert found["target"] == "the tester's weights with the adapter off"
    assert found["baseline"].startswith("the tester's weights with a copy of the adapter")


def test_scorers_are_told(bare, guard_folder, detoxify_files, tmp_path):
    classifier = save_classifier(tmp_path / "classifier", ["nothate", "hate"])
    flags = ["--tester", bare, "--target", bare, "--scorer"]
    flags += [json.dumps({"type": "detoxify", "huggingface_config_path": str(detoxify_files)}), "--held_out_scorers"]
    judge = {"type": "judge", "model": "gpt-5", "rubric": "Bad?", "base_url": "http://localhost:1/v1"}
    text = told([*flags, f"llama_guard:{guard_folder}", f"classifier:{classifier}", json.dumps(judge)])
    found = about(text)
    assert found["scorer"].startswith(f"detoxify (huggingface_config_path {detoxify_files}): {detoxify_files}, ")
    assert re.search(r"parameters in float32, [\d.]+ MB$", found["scorer"])
    assert re.search(r"^llama_guard: \S+, [\d,]+ parameters in float32, ", found["held-out scorer llama_guard"])
    assert (
        found["held-out scorer judge"]
        == "judge gpt-5 at http://localhost:1/v1: no weights here, one call per exchange within the limits"
    )
    assert about(told(flags[:4]))["scorer"] == "detoxify: not counted, about 0.5 GB"
    with pytest.raises(InputError, match="'classifier' names no model"):
        told([*flags[:4], "--scorer", "classifier"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tester", "no/such-tester"], "config of the tester 'no/such-tester' could not be loaded"),
        (["--target", "no/such-target"], "config of the target 'no/such-target' could not be loaded"),
        (["--baseline", "no/such"], "config of the baseline 'no/such' could not be loaded"),
        (["--held_out_scorers", "llama_guard"], "config of the scorer llama_guard 'meta-llama/Llama-Guard-3-8B'"),
        (
            ["--held_out_scorers", '{"type": "llama_guard", "model": "GPT2", "dtype": "float33"}'],
            "dtype 'float33' is not a dtype of torch",
        ),
        (["--tree_depth", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_had_is_named(flags, message, bare):
    flags = [flag.replace("GPT2", bare) for flag in flags]
    with pytest.raises(InputError, match=re.escape(message)) as stopped:
        told(["--tester", bare, "--target", bare, *keyword_flags("a"), *flags])
    assert "\n" not in str(stopped.value)


def test_missing_roles_and_tokenizers_are_named(bare):
    with pytest.raises(InputError, match="no tester: give"):
        told([])
    with pytest.raises(InputError, match="no target: give"):
        told(["--model_name_or_path", bare])
    with pytest.raises(InputError, match="tokenizer of the target 'no/such' could not be loaded"):
        tokenizer_of("no/such", "target", Loading("float32"))


def numbers(text: str, role: str) -> list[float]:
    line = next(line for line in text.splitlines() if re.match(rf"#   {role}: [\d,]+ x", line))
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]+(?:\.\d+)?", line)]


def test_tokens_of_a_round_follow_the_formula(bare):
    tokenizer = AutoTokenizer.from_pretrained(bare)
    chat = (Turn("user", OPENINGS[0]), Turn("assistant", OPENINGS[1]))
    first, second = (len(tokenizer(text)["input_ids"]) + 1 for text in OPENINGS)
    opening = (first + second + (first + second)) / 3
    flags = ["--tester", bare, "--target", bare, "--tree_width", "3", "--tree_depth", "2", "--max_new_tokens", "10"]
    flags += ["--num_train_epochs", "5", "--eval_openings", "4", "--trees_per_round", "6"]
    text = told(flags, openings=[*OPENINGS, chat])
    tokens = 6 * (opening + 12 * 22)
    assert numbers(text, "tester") == [6, pytest.approx(opening, abs=0.05), 12, 11, 11, pytest.approx(tokens, abs=1)]
    held_out = 2 * 4 * (opening + 2 * 22)
    whole = " ".join(text.split("# 5 rounds,")[1].replace("#", "").split())
    assert f"{5 * tokens + held_out:,.0f} (tester)" in whole
    assert f"{5 * tokens + held_out + 4 * (opening + 11):,.0f} (target)" in whole
    assert f"up to 48; if all did, it would be {5 * 8 * tokens + held_out:,.0f} (tester)" in whole
    # As many trees as the records of a full round need, where they are more.
    assert numbers(told([*flags, "--pairs_per_round", "40"]), "tester")[0] == 10
    if "ppo" in ALGORITHMS:
        ppo = [*flags, "--contexts_per_round", "48", "--per_device_train_batch_size", "4"]
        assert "a round of 48 contexts takes 12 trees" in told(ppo, "ppo")
    grpo = [*flags, "--groups_per_round", "40", "--per_device_train_batch_size", "3"]
    assert "a round of 40 groups takes 10 trees" in told(grpo, "grpo")


def test_grown_trees_take_no_more_tokens_than_told():
    world = load_world()
    openings = world.openings("train")[:4]
    text = told([], openings=openings, defaults={**SANDBOX["dpo"], "pairs_per_round": None, "trees_per_round": 4})
    system = HFASTSystem(world.tester, world.target, None, KeywordScorer(world.rude_words))
    trees = ASTSampler(system, openings, tree_width=4, tree_depth=3).grow(openings, list(range(4)))
    tokenizer = AutoTokenizer.from_pretrained(world.tester)

    def count(said: str) -> int:
        return len(tokenizer(said)["input_ids"]) + 1

    read = sum(count(opening) for opening in openings)
    read += sum(count(node.exchange.probe) + count(node.exchange.response) for tree in trees for node in tree.nodes())
    told_tokens = numbers(text, "tester")[-1]
    assert read <= told_tokens <= 4 * read
    assert numbers(text, "tester") == numbers(text, "target")


def test_windows_that_do_not_reach_are_told(bare, tmp_path):
    flags = ["--tester", bare, "--target", bare, "--max_new_tokens", "8"]
    assert "outgrow" not in told(flags)
    assert "outgrow the tester's window of 128 tokens" in told([*flags, "--tree_depth", "8"])
    text = told([*flags, "--max_length", "40"], openings=["soup " * 100])
    assert "window of 40 tokens" in text
    assert numbers(text, "target")[1] == 32
    # A recurrent state has no branches; a sliding window is a matter of the mask.
    for name, config in {
        "recurrent": Mamba2Config(hidden_size=32, num_heads=8, head_dim=8, num_hidden_layers=1),
        "sliding": MistralConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, sliding_window=8),
    }.items():
        config.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(bare).save_pretrained(tmp_path / name)
        text = " ".join(told([*flags[:3], str(tmp_path / name)]).replace("#", "").split())
        assert ("The target's cache cannot be branched" in text) == (name == "recurrent")
