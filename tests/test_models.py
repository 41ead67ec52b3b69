"""Models that cannot be used: each is refused when it is loaded, in one line that names the cause."""

import json
import shutil

import pytest
import torch
from conftest import make_gpt2, make_llama, make_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from stand_ins import bert_tokenizer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from astra_trl import HFASTSystem, HFBackend, InputError, KeywordScorer, SamplingParams
from astra_trl.backends.hf.checks import check_model

SCORER = KeywordScorer(["soup"])


def save_bert(folder, kind):
    tokenizer = bert_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    kind(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_json(folder, name, **changes):
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))


def without(text):
    return lambda weights: {name: weight for name, weight in weights.items() if text not in name}


def with_nan(weights):
    weights["transformer.h.0.mlp.c_fc.weight"][0, 0] = float("nan")
    return weights


def no_files(folder, *kept):
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()


def cut_off(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:2000])


FAULTS = {
    "empty": (no_files, r"the folder has no config.json \(it holds nothing\)"),
    "only weights": (lambda f: no_files(f, "model.safetensors"), r"no config.json \(it holds model.safetensors\)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "its weights are missing: download them"),
    "cut off": (lambda f: cut_off(f, "model.safetensors"), "its weights are cut off, or a Git LFS pointer"),
    "pointer": (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/"), "Git LFS"),
    "no tokenizer": (lambda f: no_files(f, "config.json", "model.safetensors"), "has no tokenizer: save the model's"),
    "cut tokenizer": (lambda f: cut_off(f, "tokenizer.json"), "tokenizer of the target .* could not be loaded"),
    "another kind": (
        lambda f: (f / "config.json").write_text('{"model_type": "resnet"}'),
        "a model of another kind than is needed here",
    ),
    "unknown kind": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen99"}'),
        "update transformers, or name another model",
    ),
    "missing layer": (
        lambda f: change_weights(f, without(".h.1.")),
        "as a GPT2LMHeadModel, it lacks transformer.h.1.attn.c_attn.bias, .* and 9 more, which would get random",
    ),
    "more layers": (lambda f: change_json(f, "config.json", n_layer=3), "lacks transformer.h.2.attn"),
    "other shapes": (
        lambda f: change_json(f, "config.json", vocab_size=99),
        r"transformer.wte.weight has shape \(320, 32\) in its weights and \(99, 32\) by its config.json",
    ),
    "nan": (lambda f: change_weights(f, with_nan), "gives logits that are nan or infinite"),
    "window": (
        lambda f: (f / "model.safetensors").unlink() or make_gpt2(make_tokenizer(), positions=4).save_pretrained(f),
        "leaves '.*' no room for a context in a window of 4 tokens: .* name a model with a larger window",
    ),
    "eos": (
        lambda f: change_json(f, "generation_config.json", eos_token_id=[0, 999]),
        r"eos_token_id=\[0, 999\] of '.*' is not a token id below 320",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_is_named_with_its_fault(gpt2_folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        HFBackend.from_pretrained(str(folder), role="target", sampling=SamplingParams(max_new_tokens=24))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["tester", "target", "baseline"])
def test_an_encoder_is_refused_in_every_role(gpt2_folder, tmp_path, role):
    save_bert(tmp_path / "body", BertModel)
    save_bert(tmp_path / "masked", BertForMaskedLM)
    for name, message in (
        ("body", f"^{role} .* as a BertLMHeadModel, it lacks cls.predictions.bias, .* random weights"),
        ("masked", f"^{role} .* is not a decoder: its predictions depend on tokens that come later"),
    ):
        models = {"tester": str(gpt2_folder), "target": str(gpt2_folder), "baseline": None}
        with pytest.raises(InputError, match=message):
            HFASTSystem(*{**models, role: str(tmp_path / name)}.values(), SCORER)


def test_a_head_of_its_own_may_not_be_missing_and_a_tied_one_may(gpt2_folder, tmp_path):
    tokenizer = make_tokenizer()
    make_llama(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    change_weights(tmp_path, without("lm_head"))
    with pytest.raises(InputError, match="as a LlamaForCausalLM, it lacks lm_head.weight"):
        HFBackend.from_pretrained(str(tmp_path))
    assert "lm_head.weight" not in load_file(gpt2_folder / "model.safetensors")
    HFBackend.from_pretrained(str(gpt2_folder))


@pytest.mark.parametrize("path", ["/no/such/folder", "./models/gpt2/v1", "a/b/c"])
def test_every_path_is_checked_before_any_model_is_loaded(gpt2_folder, tmp_path, path):
    with pytest.raises(InputError, match=f"target '{path}' could not be loaded: it is neither a folder nor a Hub id"):
        HFASTSystem("no/such-tester", path, None, SCORER)
    with pytest.raises(InputError, match="tester '.*model.safetensors' could not be loaded: it is neither a folder"):
        HFBackend.from_pretrained(str(gpt2_folder / "model.safetensors"), role="tester")


def test_an_adapter_that_lacks_weights_is_refused(gpt2_folder, tmp_path):
    model = get_peft_model(HFBackend.from_pretrained(str(gpt2_folder)).model, LoraConfig(target_modules=["c_attn"]))
    model.save_pretrained(tmp_path)
    HFBackend.from_pretrained(str(tmp_path), tokenizer=make_tokenizer())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(without(".h.1.")(weights), tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the adapter '.*' of the tester lacks weights"):
        HFBackend.from_pretrained(str(tmp_path), role="tester", tokenizer=make_tokenizer())


def test_the_ids_of_a_tokenizer_fit_the_embeddings(gpt2_folder):
    backend = HFBackend.from_pretrained(str(gpt2_folder))
    size = backend.vocabulary

    def check(tokenizer: PreTrainedTokenizerFast) -> None:
        check_model(HFBackend(backend.model, tokenizer), "target")

    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check(tokenizer)  # no text becomes that token
    tokenizer.chat_template = "<image>{{ messages[0].content }}"
    with pytest.raises(InputError, match=f"tokenizer of the target does not fit .* '<image>' with id {size};"):
        check(tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    tokenizer.add_tokens(["gardening"])
    with pytest.raises(InputError, match=f"{size} embeddings: 1 of its tokens lie beyond them, e.g. 'gardening'"):
        check(tokenizer)
    backend.model.resize_token_embeddings(len(tokenizer))
    check(tokenizer)


def test_a_loaded_model_is_checked_too(gpt2_folder):
    model = HFBackend.from_pretrained(str(gpt2_folder)).model
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("inf")
    with pytest.raises(InputError, match="^target gives logits that are nan or infinite"):
        HFASTSystem(str(gpt2_folder), model, None, SCORER)
