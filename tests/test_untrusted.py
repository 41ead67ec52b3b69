"""Untrusted models: code is refused at every place that loads a model, and none of it has run."""

import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import keyword_flags
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from stand_ins import CHAT_TEMPLATE, bert_tokenizer, llama_tokenizer, make_chat_llama, save_classifier
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from astra_trl import ClassifierScorer, DetoxifyScorer, HFBackend, InputError, JudgeScorer, LlamaGuardScorer
from astra_trl.backends.hf.loading import load_adapter
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.sizes import empty_model
from astra_trl.embedding import load_embedder
from astra_trl.rewards.config import build_reward
from astra_trl.scorers.config import build_scorer

REFUSED = r"weights in a pickle, .*\.bin.*: convert .* safetensors, or allow it with allow_pickle"
ALLOWED = {"allow_pickle": True}


class Marking:
    """Makes a file if it is unpickled by any other means than torch's `weights_only`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A file that hostile code in the test would make; it must never exist."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Marking(marker)))
    assert marker.exists()  # so that its absence says something
    marker.rmdir()
    yield marker
    assert not marker.exists()


def pickled(folder: Path, marker: Path | None = None, name: str = "pytorch_model.bin") -> Path:
    """A folder's weights made a pickle; a hostile one with a marker."""
    safe = folder / name.replace("pytorch_", "").replace(".bin", ".safetensors")
    weights = load_file(safe)
    safe.unlink()
    torch.save({**weights, **({} if marker is None else {"evil": Marking(marker)})}, folder / name)
    return folder


def hostile(file: Path, marker: Path) -> None:
    """A pickle that leaves a marker, under a name at which another may have been loaded, and mapped into memory."""
    file.unlink(missing_ok=True)
    torch.save({"evil": Marking(marker)}, file)


@pytest.fixture
def folder(gpt2_folder, tmp_path):
    """A copy of a tiny GPT-2 to be spoilt."""
    return shutil.copytree(gpt2_folder, tmp_path / "model")


# -- pickles


def test_a_pickle_is_refused_and_with_the_opt_in_only_its_tensors_are_read(folder, gpt2_folder, marker):
    with pytest.raises(InputError, match=f"^tester .*{REFUSED}"):
        HFBackend.from_pretrained(str(pickled(folder)), role="tester")
    allowed = HFBackend.from_pretrained(str(folder), model_init_kwargs=ALLOWED)
    plain = HFBackend.from_pretrained(str(gpt2_folder))
    assert allowed.description["weights"] == plain.description["weights"]

    hostile(folder / "pytorch_model.bin", marker)
    with pytest.raises(InputError, match=REFUSED):
        HFBackend.from_pretrained(str(folder), model_init_kwargs={"use_safetensors": False})
    with pytest.raises(InputError, match="its pickle holds more than tensors"):
        HFBackend.from_pretrained(str(folder), model_init_kwargs=ALLOWED)


def index_of_pickles(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})
    )


def safe_index_of_pickles(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": "evil.bin"}})
    )


def config_that_names_a_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").rename(folder / "adapter_model.bin")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))


@pytest.mark.parametrize("spoil", [index_of_pickles, safe_index_of_pickles, config_that_names_a_pickle])
def test_no_file_brings_in_a_pickle_by_its_name(folder, marker, spoil):
    pickled(folder, marker)
    shutil.copy(folder / "pytorch_model.bin", folder / "evil.bin")
    shutil.copy(folder / "pytorch_model.bin", folder / "pytorch_model-00001-of-00001.bin")
    spoil(folder)
    with pytest.raises(InputError, match=REFUSED):
        HFBackend.from_pretrained(str(folder))


def test_a_pickle_beside_safetensors_is_not_read(folder, marker):
    hostile(folder / "pytorch_model.bin", marker)
    assert HFBackend.from_pretrained(str(folder)).model is not None
    assert HFBackend.from_pretrained(str(folder), model_init_kwargs=ALLOWED).model is not None


def test_a_repository_in_a_cache_of_the_hub_is_as_a_folder(folder, tokenizer, tmp_path, marker):
    cached = tmp_path / "hub" / "models--some--tester"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    given = {"tokenizer": tokenizer, "model_init_kwargs": {"cache_dir": str(cached.parent)}}
    assert HFBackend.from_pretrained("some/tester", **given).model is not None
    pickled(cached / "snapshots" / ("0" * 40), marker)
    with pytest.raises(InputError, match=REFUSED):
        HFBackend.from_pretrained("some/tester", **given)


def test_transformers_asks_nobody_to_convert_a_repository():
    from transformers.utils import is_env_variable_true  # what it asks before it does

    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")


@pytest.fixture
def adapter(folder, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["c_attn"]))
    model.save_pretrained(tmp_path / "adapter")
    shutil.copy(folder / "tokenizer.json", tmp_path / "adapter")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_and_the_base_below_it_are_as_a_model(folder, adapter, marker):
    base = HFBackend.from_pretrained(str(folder)).model
    assert HFBackend.from_pretrained(str(adapter)).model is not None
    pickled(adapter, name="adapter_model.bin")
    with pytest.raises(InputError, match=REFUSED):
        HFBackend.from_pretrained(str(adapter))
    with pytest.raises(InputError, match=REFUSED):
        load_adapter(base, str(adapter), "tester")
    assert load_adapter(base, str(adapter), "tester", allow_pickle=True) is not None

    hostile(adapter / "adapter_model.bin", marker)
    with pytest.raises(InputError, match="more than tensors"):
        load_adapter(AutoModelForCausalLM.from_pretrained(folder), str(adapter), "tester", allow_pickle=True)


def test_the_base_below_a_safe_adapter_may_be_no_pickle(folder, adapter, marker):
    pickled(folder, marker)
    with pytest.raises(InputError, match=f"base .*{REFUSED}"):
        HFBackend.from_pretrained(str(adapter), role="tester")


# -- scorers and embedders


def test_scorers_refuse_pickles(tmp_path, guard_folder, marker):
    classifier = pickled(save_classifier(tmp_path / "classifier", ["fine", "rude"]), marker)
    with pytest.raises(InputError, match=f"^classifier .*{REFUSED}"):
        ClassifierScorer(str(classifier), "rude")
    with pytest.raises(InputError, match=REFUSED):
        build_reward({"gibberish": {"weight": -1.0, "model": str(classifier), "labels": ["rude"]}})
    guard = pickled(shutil.copytree(guard_folder, tmp_path / "guard"), marker)
    with pytest.raises(InputError, match=f"^Llama Guard .*{REFUSED}"):
        LlamaGuardScorer(str(guard))
    tokenizer = llama_tokenizer(CHAT_TEMPLATE)
    make_chat_llama(tokenizer).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    with pytest.raises(InputError, match=f"^judge .*{REFUSED}"):
        JudgeScorer(str(pickled(tmp_path / "judge", marker)), "Is it rude?")


def test_named_scorers_hand_the_opt_in_on(tmp_path):
    folder = pickled(save_classifier(tmp_path, ["fine", "rude"]))
    spec = {"type": "classifier", "model": str(folder), "labels": ["rude"]}
    with pytest.raises(InputError, match=REFUSED):
        build_scorer(spec)
    assert build_scorer(spec, allow_pickle=True).labels == [1]


@pytest.fixture
def embedder(tmp_path):
    """A tiny BERT of sentence-transformers, with a layer whose weights are a file of their own."""
    tokenizer = bert_tokenizer(tmp_path / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(16), Dense(16, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "embedder"))
    return tmp_path / "embedder"


@pytest.mark.parametrize("module", ["", "2_Dense"])
def test_embedders_refuse_pickles_in_every_module(embedder, module, marker):
    assert load_embedder(str(embedder))(["nice day"]).shape == (1, 8)
    pickled(embedder / module)
    with pytest.raises(InputError, match=f"^embedder .*{REFUSED}"):
        load_embedder(str(embedder))
    with pytest.raises(InputError, match=REFUSED):
        build_reward({"cosine_novelty": {"embedder": str(embedder)}})
    terms = build_reward({"cosine_novelty": {"embedder": str(embedder)}}, allow_pickle=True).terms
    assert terms["cosine_novelty"][1].embed(["nice day"]).shape == (1, 8)
    hostile(embedder / module / "pytorch_model.bin", marker)
    with pytest.raises(InputError, match="more than tensors"):
        load_embedder(str(embedder), allow_pickle=True)


def test_a_local_checkpoint_of_detoxify_gives_tensors_and_settings_alone(detoxify_files, tmp_path, marker):
    folder = shutil.copytree(detoxify_files, tmp_path / "detoxify")
    checkpoint = torch.load(folder / "tiny.ckpt", weights_only=True)
    torch.save({**checkpoint, "evil": Marking(marker)}, folder / "tiny.ckpt")
    with pytest.raises(InputError, match="holds more than tensors and settings, which could run code"):
        DetoxifyScorer(checkpoint=folder / "tiny.ckpt", huggingface_config_path=folder)
    for other in ([1], {"state_dict": {}}, {"state_dict": {}, "config": {"arch": None}}):
        torch.save(other, folder / "tiny.ckpt")
        with pytest.raises(InputError, match="not a checkpoint of detoxify"):
            DetoxifyScorer(checkpoint=folder / "tiny.ckpt", huggingface_config_path=folder)


# -- code


CODE = """
import os
os.mkdir({marker!r})
from transformers import GPT2Config, GPT2LMHeadModel, BertForSequenceClassification, PreTrainedTokenizerFast
class MyConfig(GPT2Config):
    model_type = "mine"
class MyModel(GPT2LMHeadModel):
    config_class = MyConfig
class MyTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path, marker: Path, model_type: str = "mine") -> Path:
    """Add code to a model's folder that leaves a marker when it is imported."""
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    classes = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    names = {"AutoConfig": "mine.MyConfig", **dict.fromkeys(classes, "mine.MyModel")}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": names}))
    return folder


OWN_CODE = "brings Python code of its own, which is not run: read it, then allow it with trust_remote_code"


def test_a_models_own_code_is_refused_wherever_it_is_loaded(folder, tmp_path, guard_folder, marker):
    with_code(folder, marker)
    with pytest.raises(InputError, match=f"^tester .*{OWN_CODE}"):
        HFBackend.from_pretrained(str(folder), role="tester")
    with pytest.raises(InputError, match=OWN_CODE):
        empty_model(str(folder), "tester")
    with pytest.raises(InputError, match=f"^judge .*{OWN_CODE}"):
        JudgeScorer(str(folder), "Is it rude?")
    classifier = with_code(save_classifier(tmp_path / "classifier", ["fine", "rude"]), marker)
    with pytest.raises(InputError, match=f"^classifier .*{OWN_CODE}"):
        ClassifierScorer(str(classifier), "rude")
    with pytest.raises(InputError, match=f"^Llama Guard .*{OWN_CODE}"):
        LlamaGuardScorer(str(with_code(shutil.copytree(guard_folder, tmp_path / "guard"), marker)))


def test_where_transformers_knows_the_model_its_own_code_is_left_alone(folder, marker):
    assert type(HFBackend.from_pretrained(str(with_code(folder, marker, "gpt2"))).model).__name__ == "GPT2LMHeadModel"


def test_a_tokenizers_own_code_is_not_run(folder, marker):
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": [None, "mine.MyTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **own}))
    assert HFBackend.from_pretrained(str(folder)).tokenizer is not None  # by the class that goes with GPT-2


def test_an_embedders_own_code_is_refused(embedder, marker):
    modules = json.loads((embedder / "modules.json").read_text())
    (embedder / "mine.py").write_text(CODE.format(marker=str(marker)))
    (embedder / "modules.json").write_text(json.dumps([*modules[:2], {**modules[2], "type": "mine.MyModel"}]))
    with pytest.raises(InputError, match=f"^embedder .*{OWN_CODE}"):
        load_embedder(str(embedder))
    (embedder / "modules.json").write_text(json.dumps(modules))
    with_code(embedder, marker)
    with pytest.raises(InputError, match=f"^embedder .*{OWN_CODE}"):
        load_embedder(str(embedder))


def test_the_opt_in_runs_it(folder, marker):
    with_code(folder, marker)
    HFBackend.from_pretrained(str(folder), model_init_kwargs={"trust_remote_code": True})
    assert marker.exists()  # or the tests above would not have found it missing
    marker.rmdir()


# -- files in other shapes


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "[]"),
        ("config.json", "[" * 100_000),
        ("config.json", '{"model_type": ["gpt2"]}'),
        ("config.json", '{"model_type": "gpt2", "n_layer": "two"}'),
        ("config.json", '{"model_type": "gpt2", "n_embd": -3}'),
        ("config.json", '{"model_type": "gpt2", "activation_function": "os.system"}'),
        ("config.json", '{"model_type": "gpt2", "transformers_weights": "../../model.safetensors"}'),
        ("model.safetensors", "not one"),
        ("model.safetensors", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE", "vocab": [], "merges": 3}}'),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "<end>"}'),
        ("adapter_config.json", "[]"),
        ("adapter_config.json", '{"peft_type": "LORA"}'),
    ],
)
def test_a_file_in_another_shape_is_one_line(folder, file, text):
    (folder / file).write_text(text)
    with pytest.raises(InputError) as refused:
        HFBackend.from_pretrained(str(folder), role="tester")
    assert "\n" not in str(refused.value)


# -- from the shell


def test_the_flag_lets_a_run_and_an_evaluation_load_pickles(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"What did you cook on day {i}?" for i in range(12)))
    models = ["--tester", str(pickled(folder)), "--target", str(folder), "--prompts", str(prompts)]
    common = [*models, *keyword_flags("e"), "--eval_openings", "1"]
    evaluate = [
        "evaluate",
        *common,
        "--depth",
        "1",
        "--baseline",
        "none",
        "--output_dir",
        str(tmp_path / "evaluation"),
    ]
    assert main(evaluate) == 1 and re.search(REFUSED, capsys.readouterr().err)
    assert main([*evaluate, "--allow_pickle"]) == 0
    assert (tmp_path / "evaluation" / "evaluation.json").exists()
    train = ["train", *common, "--tree_depth", "1", "--num_train_epochs", "1", "--trees_per_round", "1"]
    train += ["--max_steps", "1", "--report_to", "none", "--use_cpu", "--output_dir", str(tmp_path / "run")]
    assert main(train) == 1 and re.search(REFUSED, capsys.readouterr().err)
    assert main([*train, "--pairs_per_round", "1", "--max_trees_per_round", "50", "--allow-pickle"]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_runs_folder_allows_nothing_by_itself(tmp_path):
    settings = "tree_depth: 2\ntarget: some/target\nallow_pickle: true\ntrust_remote_code: true\ndtype: bfloat16\n"
    (tmp_path / "config.yaml").write_text(settings)
    for argv, allowed in (([], False), (["--allow_pickle", "--trust_remote_code"], True)):
        args, load = parse_evaluate([str(tmp_path), *argv])
        assert (args.allow_pickle, load.trust_remote_code) == (allowed, allowed)
        assert load.dtype == "bfloat16"  # all else is taken over


def test_checkpoints_are_read_as_tensors_alone(tmp_path, marker):
    from transformers import Trainer, TrainingArguments

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    model = torch.nn.Linear(1, 1)
    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    trainer.create_optimizer_and_scheduler(1)
    hostile(folder / "optimizer.pt", marker)
    hostile(folder / "scheduler.pt", marker)
    hostile(folder / "rng_state.pth", marker)
    with zipfile.ZipFile(folder / "optimizer.pt") as file:
        assert any(b"mkdir" in file.read(name) for name in file.namelist())
    with pytest.raises(pickle.UnpicklingError):
        trainer._load_optimizer_and_scheduler(str(folder))
    with pytest.raises(pickle.UnpicklingError):
        trainer._load_rng_state(str(folder))
