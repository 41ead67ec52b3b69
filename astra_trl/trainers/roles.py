"""Roles of a system in training: the model that is trained, the reference, and settings that are the tester's."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel

from astra_trl.backends.base import Backend
from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.backend import UNTRAINED
from astra_trl.backends.hf.model import base_of
from astra_trl.callables import describe
from astra_trl.errors import InputError
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.systems.base import System


def tester_to_train(system: System, peft_config: Any) -> HFBackend:
    """Return the system's tester, which a trainer will train, with a new adapter if there is a `peft_config`.

    Raises `InputError` if TRL cannot train it, if no part of it would be trained, if its trained weights are float16,
    or if training it would change the target or the baseline.
    """
    tester = trainable_tester(system)
    if is_peft_model(tester.model):
        if peft_config is not None:
            raise InputError(
                "the tester has an adapter already, which would be trained further: leave peft_config out, or make "
                "the adapter part of the weights first (model.merge_and_unload())"
            )
        if tester.model.active_adapter != "default":
            raise InputError(
                f"the tester's adapter is called {tester.model.active_adapter!r}, and TRL trains the one called "
                "'default': load it under that name"
            )
        if tester.use_adapter is not True:
            raise InputError(
                "the tester samples without the adapter that would be trained: build its HFBackend with "
                "use_adapter=True"
            )
    if peft_config is None:
        check_trainable(tester.model)
        _check_roles_apart(system, tester.model)
    return tester


def trainable_tester(system: System) -> HFBackend:
    """Return the system's tester. Raises `InputError` if TRL cannot train it."""
    if not isinstance(system.tester, HFBackend):
        raise InputError(
            f"the tester's backend {type(system.tester).__name__} cannot be trained: use a transformers model"
        )
    return system.tester


def check_trainable(model: torch.nn.Module) -> None:
    """Raise `InputError` if no parameter of the model is trained, or one is trained in float16."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(
            "training would change no parameter of the tester, as requires_grad is False for all of them: load its "
            "adapter with is_trainable=True, or name the adapter's folder or Hub id as the tester"
        )
    if any(parameter.dtype == torch.float16 for parameter in trained):
        raise InputError(
            "the tester's trained weights are float16, whose steps underflow and overflow: load it with dtype "
            "bfloat16 or float32 (--dtype), or train an adapter beside it (--use_peft), which is kept in float32"
        )


def _check_roles_apart(system: System, tester: Any) -> None:
    if is_peft_model(tester):
        return
    for name, remedy in (("target", "load the target a second time"), ("baseline", "leave the baseline out")):
        if _share_weights(getattr(system, name), tester):
            raise InputError(
                f"tester and {name} are one loaded model, so training would change the {name}: train an "
                f"adapter beside it (--use_peft, or peft_config), or {remedy}"
            )


def put_trained_tester(trainer: Any, had_adapter: bool) -> None:
    """Prepare the model as TRL wrapped it, and make it the tester of the system."""
    model = trainer.tester_in(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))
    check_trainable(model)
    if had_adapter:
        keep_untrained_adapter(model)
    if getattr(trainer.args, "disable_dropout", False):
        switch_dropout_off(model)
    bind_tester(trainer.sampler.system, model)
    for fed in (model, getattr(trainer, "ref_model", None)):
        if fed is not None:
            count_positions(trainer.accelerator.unwrap_model(fed, keep_torch_compile=False))


def bind_tester(system: System, model: PreTrainedModel) -> None:
    """Make `model`, as TRL wrapped it, the system's tester. Roles that shared the tester's weights keep theirs: the
    same with the adapter off or, if an adapter is trained further, with the copy of it."""
    tester, before = trainable_tester(system), system.tester.model  # type: ignore[attr-defined]
    tester.model = model
    untrained = tester.before_training()
    for role in (system.target, system.baseline):
        if not (isinstance(role, HFBackend) and _share_weights(role, before)):
            continue
        if role.model is not before:  # the base model, into which peft has put the tester's adapter
            role.use_adapter = False
        elif untrained is not None and role.use_adapter is True:
            role.use_adapter = untrained.use_adapter
        role.model = model


def keep_untrained_adapter(model: Any) -> None:
    """Keep a frozen copy of the adapter as it was before training; TRL makes one itself if it needs a reference."""
    if UNTRAINED in model.peft_config:
        return
    trained = dict(model.named_parameters())
    model.add_adapter(UNTRAINED, model.peft_config["default"])
    with torch.no_grad():
        for name, parameter in trained.items():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", f".{UNTRAINED}.")).copy_(parameter)


def load_trained_adapter(model: Any, checkpoint: str) -> None:
    """Load the adapter of a checkpoint that has further ones in folders: transformers before 5.23 loads only these."""
    if is_peft_model(model) and any(Path(checkpoint).glob("*/adapter_config.json")):
        model.load_adapter(checkpoint, "default", is_trainable=True)


def reference_model(system: System, peft: bool, synced: bool = False) -> PreTrainedModel | None:
    """Return the frozen reference for TRL: the baseline, a copy of the tester, or `None` if it is the tester with its
    adapter off or with the copy of that adapter.

    A reference that TRL moves after the tester (`synced`) is a model of its own. Raises `InputError` if the baseline
    is a model without its adapter, which TRL would use with it.
    """
    tester, baseline = trainable_tester(system).model, system.baseline
    if isinstance(baseline, HFBackend) and not _share_weights(baseline, tester):
        if is_peft_model(baseline.model) and baseline.use_adapter is not True:
            raise InputError(
                "the baseline has an adapter that it does not use, and TRL's reference would: load its base alone"
            )
        return _frozen_copy(baseline.model) if synced else baseline.model
    without = isinstance(baseline, HFBackend) and (baseline.model is not tester or baseline.use_adapter is not True)
    if without and is_peft_model(tester):
        raise InputError(
            "the baseline is the tester's base without its adapter, and the reference of training is that adapter as "
            "it was before: leave the baseline out, or load it as a model of its own"
        )
    return None if peft or is_peft_model(tester) else _frozen_copy(tester)


def _share_weights(backend: Any, model: Any) -> bool:
    # peft puts an adapter into the base model itself, so whoever holds the base has the adapter too.
    other = getattr(backend, "model", None)
    return isinstance(other, torch.nn.Module) and base_of(other) is base_of(model)


def _frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).eval().requires_grad_(False)


def count_positions(model: Any) -> None:
    """Make a model count positions from the first token of each row that is padded on the left.

    TRL passes an attention mask alone, and models with learned positions, e.g. GPT-2, then count the padding too.
    Callers that pass `position_ids` are not affected.
    """
    # Every way through the model calls the decoder: PEFT and TRL's Liger losses call no module around it.
    decoder = base_of(model).base_model
    if "position_ids" in inspect.signature(type(decoder).forward).parameters:
        decoder.register_forward_pre_hook(_with_position_ids, with_kwargs=True)


def _with_position_ids(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    fed = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
    if kwargs.get("position_ids") is None and mask is not None and fed is not None and mask.shape == fed.shape[:2]:
        kwargs = {**kwargs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
    return args, kwargs


def switch_dropout_off(model: torch.nn.Module) -> None:
    """Set every dropout probability of a model to 0: those of `Dropout` modules, which TRL sets too, and those that
    attention layers keep as numbers."""
    for module, name in dropouts(model):
        setattr(module, name, 0.0)


def dropouts(model: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Return the modules of a model with dropout, each with the name of the attribute that holds its probability."""
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if (name == "p" if isinstance(module, torch.nn.Dropout) else "drop" in name)
        and isinstance(value, float)
        and value > 0
    ]


def use_sampling(args: Any, tester: HFBackend, **names: str) -> None:
    """Set the fields of TRL's config for sampling to the tester's own.

    `names` maps each to a field of `SamplingParams`. Raises `InputError` if one is set to another value, and for a
    greedy tester, from which a policy gradient learns nothing.
    """
    if tester.sampling.temperature == 0:
        raise InputError("a tester of temperature 0 says one thing only and cannot explore: raise its temperature")
    for name, field in names.items():
        setting, own = getattr(args, name), getattr(tester.sampling, field)
        if setting not in (None, own):
            raise InputError(
                f"{name}={setting}, and the tester samples with {field}={own}: leave {name} out, or set {field} of "
                f"the tester's sampling to {setting}"
            )
        setattr(args, name, own)


def run_settings(trainer: Any) -> dict[str, Any]:
    """Return the settings of a run as far as its trainer knows them: those of `config.yaml` in a recipe."""
    sampler, tester = trainer.sampler, trainable_tester(trainer.sampler.system)
    return {
        **trainer.args.to_dict(),
        **asdict(tester.sampling),
        "algorithm": trainer._tag_names[-1],
        "system": type(sampler.system).__name__,
        "tester": _model_name(tester),
        "target": _model_name(sampler.system.target),
        "tree_width": sampler.tree_width,
        "tree_depth": sampler.tree_depth,
        "use_peft": is_peft_model(tester.model),
        "hub_model_id": trainer.args.hub_model_id,
    }


def _model_name(backend: Any) -> str | None:
    model = getattr(backend, "model", None)
    return model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", None) or None


def baseline_of(trainer: Any) -> Backend | None:
    """Return the frozen reference of the tester that is trained, if it has one that stays as it is."""
    system, tester = trainer.sampler.system, trainable_tester(trainer.sampler.system)
    if system.baseline is not None or getattr(trainer.args, "sync_ref_model", False):
        return system.baseline
    if (reference := getattr(trainer, "ref_model", None)) is not None:
        return replace(tester, model=trainer.accelerator.unwrap_model(reference, keep_torch_compile=False))
    return tester.before_training()


def check_arguments(trainer: Any, sampler: Any, args: Any, of_trl: Mapping[str, Any]) -> None:
    """Raise `InputError` if a trainer is given something else than a sampler and its own config, or arguments that
    TRL's trainers take and the trainers of this package do not."""
    name, config = type(trainer).__name__, trainer.config_class.__name__
    if not isinstance(sampler, ASTSampler):
        raise InputError(f"the first argument of {name} must be an ASTSampler, got {describe(sampler)}")
    if not isinstance(args, trainer.config_class):
        raise InputError(f"args of {name} must be an {config}, got {describe(args)}")
    if of_trl:
        raise InputError(
            f"{name} takes no argument {min(of_trl)!r}: the model is the tester of the sampler's system, the data are "
            "collected, and the rewards are the system's"
        )
