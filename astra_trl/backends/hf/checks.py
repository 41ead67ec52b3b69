"""Checks of a model with its tokenizer, after loading."""

import torch

from astra_trl.backends.hf.model import HFModel
from astra_trl.errors import InputError
from astra_trl.libraries import explained


def check_model(backend: HFModel, name: str) -> None:
    """Raise `InputError` unless the tokenizer's ids fit the model, and the model is causal and gives finite logits."""
    tokenizer, size = backend.tokenizer, backend.vocabulary
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    # Utterances never hold special tokens, and some models have embeddings for fewer of them, e.g. Gemma 3.
    unused = {token for token in special - used if token not in str(tokenizer.chat_template or "")}
    beyond = {id_: token for token, id_ in tokenizer.get_vocab().items() if id_ >= size and token not in unused}
    if beyond:
        first = min(beyond)
        raise InputError(
            f"the tokenizer of the {name} does not fit its {size:,} embeddings: {len(beyond)} of its tokens lie "
            f"beyond them, e.g. {beyond[first]!r} with id {first}; take both from one checkpoint, or save the model "
            "after model.resize_token_embeddings(len(tokenizer))"
        )
    if any(parameter.is_meta or not parameter.numel() for parameter in backend.model.parameters()):
        return  # sharded while loading, or with weights elsewhere
    # The second token differs: a causal model does not see it at the first.
    ids = torch.tensor([[0, 0], [0, size - 1]], device=backend.device)
    positions = torch.tensor([[0, 1]] * 2, device=backend.device)
    with explained(f"{name} cannot run", "check its settings and its device"), backend.inference():
        output = backend.forward(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
        logits = output.logits[:, -2:].float()
    if not logits.isfinite().all():
        raise InputError(
            f"{name} gives logits that are nan or infinite: its weights are damaged or do not fit its dtype "
            f"{str(backend.model.dtype).removeprefix('torch.')}, so save it again, or choose bfloat16 or float32"
        )
    difference = (logits[0, 0] - logits[1, 0]).abs().max() / logits.abs().max().clamp(min=1e-9)
    if difference > max(1e-4, 2 * torch.finfo(backend.model.dtype).eps):  # it is 0 for most decoders
        raise InputError(
            f"{name} is not a decoder: its predictions depend on tokens that come later, as in BERT; name a causal "
            "language model"
        )
