"""Training of a world: one small tokenizer, a tester that chats about every topic, a target that is rude about a few.

Training text has the format of rollouts: each utterance is tokenised alone and followed by a newline. In place of the
newline the models learn to predict the end of text, because sampling stops there and the newline is added afterwards.
"""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from astra_trl.errors import InputError
from astra_trl.outputs import explain_full_disk, saving_weights, unwritable
from astra_trl.sandbox import grammar
from astra_trl.sandbox.plans import Plan, plan_world
from astra_trl.sandbox.topics import Weakness

Lesson = tuple[list[list[str]], slice]  # conversations, and the utterances of each that the model learns
ALL_BUT_OPENING, PROBES, RESPONSES = slice(1, None), slice(1, None, 2), slice(2, None, 2)

END_OF_TEXT = "<|endoftext|>"
N_POSITIONS = 256
ROWS_PER_STEP = 16
IGNORED = -100


def check_output(output: Path) -> None:
    """Raise `InputError` if the output exists and is not an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output '{output}' exists and is not an empty folder: name another or remove it")


def build_world(
    output: str | Path,
    seed: int = 0,
    weak: Collection[str] | None = None,
    tester_steps: int | None = None,
    target_steps: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
    delayed: bool = False,
    wide: bool = False,
) -> None:
    """Write the world of this seed to `output`: tester/, target/ and world.json.

    The same arguments give the same bytes on the same kind of processor.

    Args:
        output (`str` or `Path`): Folder that is empty or does not exist.
        seed (`int`): Seed of the weights, the openings and, unless `weak` names them, the weak topics.
        weak (`Collection[str]`, *optional*): Topics that the target is rude about.
        tester_steps, target_steps (`int`, *optional*): Optimizer steps; the target starts from the trained tester.
        progress (`Callable`): Called with a line of text every 100 steps.
        delayed (`bool`): Whether the target turns rude two turns after a weak topic instead of at once.
        wide (`bool`): Whether the world has 200 topics, some frequent and some rare, and 24 weaknesses.
    """
    plan, output = plan_world(seed, weak, delayed, wide), Path(output)
    check_output(output)
    try:
        output.mkdir(parents=True, exist_ok=True)  # before the models are trained
    except OSError as error:
        raise unwritable(output, error, "name another folder") from error
    with reproducible(seed):
        tokenizer = train_tokenizer(plan)
        end = tokenizer.eos_token_id
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=N_POSITIONS,
            n_embd=96,
            n_layer=3,
            n_head=4,
            # The function "gelu_new" of GPT-2 in one kernel: computed in Python it takes a third of a rollout's time.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            # With 0.02 as in GPT-2 so narrow a model takes long to learn to copy the topic.
            initializer_range=0.1,
            bos_token_id=end,
            eos_token_id=end,
        )
        tester = GPT2LMHeadModel(config)
        place_positions(tester)
        steps = plan.tester_steps if tester_steps is None else tester_steps
        train("tester", tester, tokenizer, seed, partial(tester_lesson, plan), steps, 8e-3, progress)
        target = GPT2LMHeadModel(config)
        target.load_state_dict(tester.state_dict())
        steps = plan.target_steps if target_steps is None else target_steps
        train("target", target, tokenizer, seed, partial(target_lesson, plan), steps, 4e-3, progress)
    counts = Counter(plan.topics)
    world = {
        "seed": seed,
        "weaknesses": [asdict(weakness) for weakness in plan.weaknesses],
        "delay": grammar.DELAY if plan.delayed else 0,
        "topics": list(counts),
        "frequencies": list(counts.values()),
        "rude_words": grammar.RUDE_WORDS,
        "openings": {split: grammar.openings(split, seed, plan.topics) for split in grammar.SPLITS},
    }
    # Renamed at last, so that an interrupted build leaves an empty folder.
    with (
        explain_full_disk(output, "Then build the world again"),
        saving_weights(),
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder,
    ):
        unfinished = Path(folder) / output.name
        for name, model in (("tester", tester), ("target", target)):
            model.save_pretrained(unfinished / name)
            tokenizer.save_pretrained(unfinished / name)
        (unfinished / "world.json").write_text(json.dumps(world, indent=1) + "\n", encoding="utf-8")
        output.rmdir()
        unfinished.rename(output)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Run the block with seeded, deterministic, single-threaded torch, and restore the settings afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            # The split of a sum among threads changes its last bits.
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def train_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the plan's topics; like many real ones, it has no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(grammar.utterances(tuple(dict.fromkeys(plan.topics))), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=N_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[str]], learnt: slice = ALL_BUT_OPENING
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input ids and labels of conversations, both (rows, longest), padded on the right.

    Labels are those of a causal language model. They are the end of text at each newline, and ignored in utterances
    outside `learnt`.
    """
    rows, labels = [], []
    for utterances in conversations:
        *encoded, newline = tokenizer([*utterances, "\n"], add_special_tokens=False).input_ids
        indices = range(len(utterances))[learnt]
        label: list[int] = []
        for index, ids in enumerate(encoded):
            label += [*ids, tokenizer.eos_token_id] if index in indices else [IGNORED] * (len(ids) + 1)
        rows.append(torch.tensor([token for ids in encoded for token in (*ids, *newline)]))
        labels.append(torch.tensor(label))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORED)


def tester_lesson(plan: Plan, rng: random.Random) -> Lesson:
    """Draw friendly conversations, learnt whole, or rude ones, in which the tester learns to continue unmoved."""
    settings = {"topics": plan.topics, "staged": grammar.is_staged(plan.weaknesses)}
    if rng.random() < 0.25:
        return _conversations(rng, weaknesses=[*map(Weakness, dict.fromkeys(plan.topics))], **settings), PROBES
    return _conversations(rng, **settings), ALL_BUT_OPENING


def target_lesson(plan: Plan, rng: random.Random) -> Lesson:
    """Draw conversations with rude responses on weaknesses, which are frequent in many; only responses of these are
    learnt.

    Weaknesses are too rare to be learnt soon otherwise, and the likelihood of probes must not change.
    """
    settings = {
        "weaknesses": plan.weaknesses,
        "topics": plan.topics,
        "delayed": plan.delayed,
        "staged": grammar.is_staged(plan.weaknesses),
    }
    if rng.random() < plan.dense_share:
        return _conversations(rng, dense_topics=plan.dense_topics, **settings), RESPONSES
    return _conversations(rng, **settings), ALL_BUT_OPENING


def _conversations(rng: random.Random, **settings: Any) -> list[list[str]]:
    turns = (4, 5) if settings.get("delayed") else (3, 4)  # a delayed weakness takes some turns to show
    return [grammar.conversation(rng, exchanges=rng.choice(turns), **settings) for _ in range(ROWS_PER_STEP)]


def place_positions(model: GPT2LMHeadModel) -> None:
    """Set the position embeddings, in place, to sinusoids, with which the model soon finds the latest topic."""
    size = model.config.n_embd
    angles = torch.arange(N_POSITIONS)[:, None] * 1000 ** (-torch.arange(0, size, 2) / size)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    model.transformer.wpe.weight.data.copy_(waves * model.config.initializer_range)


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy, in nats per token, of logits (rows, tokens, vocabulary) and labels."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def train(
    name: str,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    draw: Callable[[random.Random], Lesson],
    steps: int,
    learning_rate: float,
    progress: Callable[[str], None],
) -> None:
    """Train the model in place on lessons drawn anew for each step."""
    rng = random.Random(f"{name} {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)
    model.train()
    for step in range(1, steps + 1):
        ids, labels = encode(tokenizer, *draw(rng))
        # Conversations begin at any position, so that deeper trees than these rows have trained positions.
        start = torch.tensor([rng.randint(0, N_POSITIONS - ids.shape[1]) for _ in ids])
        positions = start[:, None] + torch.arange(ids.shape[1])
        loss = next_token_loss(model(input_ids=ids, position_ids=positions).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            progress(f"{name} step {step}/{steps}, loss {loss.item():.3f}")
    model.eval()
