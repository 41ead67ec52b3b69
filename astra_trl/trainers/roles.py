"""What a trainer makes of a system's roles: which model it trains, which it holds as the reference, which settings of
its own are the tester's."""

import copy
from typing import Any

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel

from astra_trl.backends.hf import HFBackend
from astra_trl.errors import InputError
from astra_trl.systems.base import System


def bind_tester(system: System, model: PreTrainedModel) -> None:
    """Makes `model`, as TRL wrapped it, the system's tester. Roles that shared the tester's weights stay what they
    were: the same weights with the adapter off."""
    tester = trainable_tester(system)
    for role in (system.target, system.baseline):
        if isinstance(role, HFBackend) and role.model is tester.model:
            role.model, role.use_adapter = model, False
    tester.model = model


def trainable_tester(system: System) -> HFBackend:
    """The system's tester; `InputError` where it is nothing that TRL can train."""
    if not isinstance(system.tester, HFBackend):
        raise InputError(
            f"the tester's backend {type(system.tester).__name__} cannot be trained: use a transformers model"
        )
    return system.tester


def check_target_apart(system: System, peft: bool) -> None:
    """`InputError` where training the tester would change the target."""
    tester = trainable_tester(system).model
    if not (peft or is_peft_model(tester)) and getattr(system.target, "model", None) is tester:
        raise InputError(
            "tester and target are one loaded model, so training would change the target: pass peft_config, which "
            "trains an adapter beside it, or load the target a second time"
        )


def reference_model(system: System, peft: bool) -> PreTrainedModel | None:
    """The frozen reference for TRL: the baseline, a copy of the tester, or `None` where it is the adapter off.

    Raises `InputError` where training would change the target.
    """
    check_target_apart(system, peft)
    tester = trainable_tester(system).model
    baseline = getattr(system.baseline, "model", None)
    if baseline is not None and baseline is not tester:
        return baseline
    if peft or is_peft_model(tester):
        return None
    return copy.deepcopy(tester).eval().requires_grad_(False)


def use_sampling(args: Any, tester: HFBackend, **names: str) -> None:
    """Sets the fields of TRL's config that say how probes are sampled to what the tester samples with.

    `names` gives the field of `SamplingParams` for each. Raises `InputError` where one was set to something else, and
    for a greedy tester, of which a policy gradient learns nothing.
    """
    if tester.sampling.temperature == 0:
        raise InputError("a tester of temperature 0 says one thing only and cannot explore: raise its temperature")
    for name, field in names.items():
        given, own = getattr(args, name), getattr(tester.sampling, field)
        if given not in (None, own):
            raise InputError(
                f"{name}={given}, and the tester samples with {field}={own}: leave {name} out, or build the system "
                f"with SamplingParams({field}={given})"
            )
        setattr(args, name, own)
