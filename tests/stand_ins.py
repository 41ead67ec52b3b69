"""Small models in the real formats that stand in for the scorers' own, saved to folders."""

from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import CORPUS, EOS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

DETOXIFY_CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

HAZARDS = """\
S1: Violent Crimes. S2: Non-Violent Crimes. S3: Sex Crimes. S4: Child Exploitation. S5: Defamation.
S6: Specialized Advice. S7: Privacy. S8: Intellectual Property. S9: Indiscriminate Weapons. S10: Hate.
S11: Self-Harm. S12: Sexual Content. S13: Elections. S14: Code Interpreter Abuse."""

# In the manner of Llama Guard 3, and of like proportions: a long list of hazards, roles that must alternate, the last
# one is assessed, and the answer's turn is open.
GUARD_TEMPLATE = """\
{{ bos_token }}<|start_header_id|>user<|end_header_id|>
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- endfor %}

Task: is there unsafe content in the last {{ 'User' if messages[-1].role == 'user' else 'Agent' }} message?
HAZARDS
{% for message in messages %}
{{ 'User' if message.role == 'user' else 'Agent' }}: CONTENT
{% endfor %}
Say safe or unsafe, and on a second line which hazards.<|eot_id|><|start_header_id|>assistant<|end_header_id|>"""
GUARD_TEMPLATE = GUARD_TEMPLATE.replace("HAZARDS", HAZARDS)
TEXT_CONTENT = "{{ message.content | trim }}"
PARTS_CONTENT = "{{ message.content | map(attribute='text') | join | trim }}"
CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""


def bert_tokenizer(folder: Path) -> BertTokenizerFast:
    """A word-piece tokenizer of letters and a few words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "you", "fool", "nice", "day"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{letter}" for letter in letters)]))
    return BertTokenizerFast(str(folder / "vocab.txt"))


def save_classifier(
    folder: Path, labels: Sequence[str], problem_type: str | None = None, hidden_size: int = 16, layers: int = 2
) -> Path:
    """A random BERT classifier with its tokenizer; its outputs differ well between texts."""
    tokenizer = bert_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden_size // 64),
        intermediate_size=4 * hidden_size,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem_type,
        initializer_range=0.5 if hidden_size < 64 else 0.02,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_detoxify(folder: Path, hidden_size: int = 16, layers: int = 2) -> Path:
    """A checkpoint in detoxify's own format, `tiny.ckpt`, beside its config and tokenizer."""
    save_classifier(folder, DETOXIFY_CLASSES, hidden_size=hidden_size, layers=layers)
    model = BertForSequenceClassification.from_pretrained(folder)
    model.classifier.bias.data[0] = -6.0  # mostly harmless, so that a toxicity filter keeps something
    arch = {
        "model_type": str(folder),
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": len(DETOXIFY_CLASSES),
    }
    config = {"arch": {"args": arch}, "dataset": {"args": {"classes": DETOXIFY_CLASSES}}}
    torch.save({"config": config, "state_dict": model.state_dict()}, folder / "tiny.ckpt")
    (folder / "model.safetensors").unlink()
    return folder


def llama_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Llama 3's special tokens, for which "safe" and "unsafe" are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    frequent = ["safe", "\n\nunsafe\nS1,S10\n", "yes no", GUARD_TEMPLATE]
    tokenizer.train_from_iterator([*CORPUS, *(text for text in frequent for _ in range(20))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[3],
        additional_special_tokens=SPECIAL[1:3],
        chat_template=template,
    )


def make_chat_llama(tokenizer: PreTrainedTokenizerFast, hidden_size: int = 32, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama for that tokenizer, with a window of 512 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden_size // 64),
        num_key_value_heads=max(1, hidden_size // 128),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2 if hidden_size < 64 else 0.02,
    )
    return LlamaForCausalLM(config).eval()


def save_llama_guard(folder: Path, content: str = TEXT_CONTENT, hidden_size: int = 32, layers: int = 2) -> Path:
    """A random Llama with a template in the manner of Llama Guard."""
    tokenizer = llama_tokenizer(GUARD_TEMPLATE.replace("CONTENT", content))
    make_chat_llama(tokenizer, hidden_size, layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, answers: Sequence[tuple[str, str]]) -> None:
    """Trains the model until it answers each rendered prompt, and an end of turn behind it, as given."""
    rows = []
    for prompt, answer in answers:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((torch.tensor([ids + said]), torch.tensor([[-100] * len(ids) + said])))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        if loss < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
