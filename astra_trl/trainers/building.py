"""Construction of a trainer: what TRL, transformers, peft and accelerate refuse, before anything is collected."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_liger_kernel_available

from astra_trl.backends.hf import HFBackend
from astra_trl.errors import InputError
from astra_trl.libraries import explained
from astra_trl.prompts.base import openings_of
from astra_trl.rollout.opening_checks import check_openings
from astra_trl.rollout.sampler import ASTSampler

FIX = "change the setting that it is about"


def check_settings(args: Any, model: PreTrainedModel | None = None) -> None:
    """Raise `InputError` if the optimizer, its arguments, those of the learning rate schedule, `report_to` or Liger
    cannot be used. Optimizers of some layers alone need the model."""
    available = get_available_reporting_integrations()
    not_listed = {"azure_ml", "flyte"}  # even if they are installed
    if missing := sorted(set(args.report_to) - set(available) - not_listed):
        raise InputError(
            f"report_to {missing[0]} cannot be used: install it (pip install {missing[0]}), or choose one of "
            f"{', '.join([*available, 'none'])}"
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise InputError("use_liger_kernel needs Liger: install it (pip install liger-kernel), or leave it out")
    if model is not None or not args.optim_target_modules:
        name = getattr(args.optim, "value", args.optim)
        with explained(f"the optimizer {name} cannot be used", f"{FIX} (--optim, --optim_args)"):
            Trainer.get_optimizer_cls_and_kwargs(args, model)
    with explained("the learning rate schedule cannot be used", f"{FIX} (--lr_scheduler_type, --lr_scheduler_kwargs)"):
        optimizer = torch.optim.SGD([torch.zeros(1)])
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=args.lr_scheduler_kwargs)


def check_all_openings(sampler: ASTSampler, eval_dataset: Any) -> None:
    """Raise `InputError` if an opening, or one of those for evaluation, does not fit a model's chat template."""
    held_out = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    for openings in (sampler.prompts, *(openings_of(given) for given in held_out if given is not None)):
        check_openings(sampler.system, openings, sampler.tree_depth)


def check_padding(tester: HFBackend, tokenizer: PreTrainedTokenizerBase, args: Any) -> None:
    """Raise `InputError` unless the tester knows the token that TRL pads its rows with: the pad token, or else EOS."""
    token = getattr(args, "pad_token", None) or tokenizer.pad_token or tokenizer.eos_token
    known = None if token is None else tokenizer.get_vocab().get(token)
    if known is None or known >= tester.vocabulary:
        what = "no pad token and no EOS" if token is None else f"a pad token {token!r} that the tester does not know"
        flag = ", or give --pad_token" if hasattr(args, "pad_token") else ""
        raise InputError(
            f"the tester's tokenizer has {what}, and training pads rows with it: set pad_token or eos_token to one of "
            f"the model's {tester.vocabulary:,} tokens in its tokenizer_config.json{flag}"
        )


@contextmanager
def built(args: Any, tester: HFBackend, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Check what TRL gets, and turn what libraries refuse while a trainer is built into an `InputError`."""
    model = tester.model
    check_settings(args, model)
    check_padding(tester, tokenizer, args)
    layers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    fixes = {
        r"[Tt]arget.modules|modules were targeted": (
            f"choose lora_target_modules (--lora_target_modules) among {', '.join(sorted(layers))}, or all-linear"
        ),
        "distributed training": "start it in several processes (--num_processes, --accelerate_config)",
    }
    with explained("the trainer cannot be built", FIX, fixes):
        yield


@contextmanager
def packages_at_hand() -> Iterator[None]:
    """Turn the lack of a package that training needs only then into an `InputError`."""
    with explained("training cannot begin", FIX, errors=(ImportError,)):
        yield


@contextmanager
def first_step(steps_taken: int) -> Iterator[None]:
    """Turn what TRL refuses in the very first step, e.g. an unknown `loss_type`, into an `InputError`."""
    refused = () if steps_taken else (ValueError, NotImplementedError)
    with explained("the first training step failed", FIX, errors=refused):
        yield
