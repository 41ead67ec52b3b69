"""The model card of a run: what the tester is, its figures, and how to load and train it again."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from astra_trl.hub.config import as_yaml
from astra_trl.hub.evaluation import eval_results, paragraphs
from astra_trl.hub.redaction import Secrets
from astra_trl.hub.run import Run
from astra_trl.hub.staging import is_checkpoint, run_of
from astra_trl.results.markdown import escape, fenced, table
from astra_trl.text import visible

_SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")


def model_card(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    transcripts: str | None = None,
    known: Mapping[str, Any] | None = None,
    evaluated: bool = True,
    **metadata: Any,
) -> str:
    """Return the card of the model in a run's folder, or in a checkpoint of it, as the text of its `README.md`.

    It leaves out what the folder does not hold, and names no path of this machine.

    Args:
        folder (`str` or `Path`):
            With `config.yaml`, `summary.json` and `evaluation/evaluation.json`, as far as they exist.
        repo_id (`str`, *optional*):
            Name of the model on the Hub; defaults to the run's `hub_model_id` or the name of its folder.
        transcripts (`str`, *optional*):
            Id of the data set with the run's conversations.
        known (`Mapping`, *optional*):
            Settings that `config.yaml` may lack.
        evaluated (`bool`, *optional*, defaults to `True`):
            `False` if the evaluation in the folder is of another model. A checkpoint's figures are never shown.
        metadata:
            Arguments of `huggingface_hub.ModelCardData`, e.g. `license="mit"`.
    """
    folder = Path(folder)
    run = Run(folder, known or {}, evaluated and not is_checkpoint(folder))
    repo_id = visible(repo_id or run.default_repo_id)
    tags = metadata.get("tags") or ()
    data = ModelCardData(
        **{
            "library_name": "peft" if run.is_adapter else "transformers",
            "pipeline_tag": "text-generation",
            "base_model": run.base if _is_hub_id(run.base) else None,
            "model_name": repo_id.rpartition("/")[2],
            "eval_results": list(eval_results(run)) or None,
            **metadata,
            "tags": [
                *("trl", "astra-trl", run.algorithm, run.system),
                *(f"arxiv:{paper}" for paper in run.papers.values()),
                *([tags] if isinstance(tags, str) else tags),
            ],
        }
    )
    papers = [f"[{escape(name)}](https://huggingface.co/papers/{paper})" for name, paper in run.papers.items()]
    base = f"[{escape(run.base)}](https://huggingface.co/{run.base})" if _is_hub_id(run.base) else escape(run.base)
    card = ModelCard.from_template(
        data,
        str(Path(__file__).with_name("card_template.md")),
        name=escape(repo_id.rpartition("/")[2]),
        target=escape(run.target) or "another language model",
        base=base or "another model",
        algorithm=escape(run.algorithm.upper()),
        system=escape(run.label),
        facts=table(("", ""), run.facts()),
        evaluation="\n\n".join(paragraphs(run)),
        loading=_loading(run, repo_id),
        training=_training(run),
        versions="\n".join(f"- {escape(name)}: {escape(number)}" for name, number in run.versions()),
        transcripts=escape(transcripts or ""),
        papers="\n".join(f"- {link}" for link in [*papers, "[TRL](https://github.com/huggingface/trl)"]),
    )
    return Secrets(run_of(folder)).hide_paths(str(card) + "\n")


def _loading(run: Run, repo_id: str) -> str:
    model, note = json.dumps(repo_id), ""
    if not run.is_adapter:
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        load = f"tester = AutoModelForCausalLM.from_pretrained({model})"
    elif _is_hub_id(run.base) or not run.base:
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        load = f"tester = AutoPeftModelForCausalLM.from_pretrained({model})"
    else:
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
        load = f"base = AutoModelForCausalLM.from_pretrained({json.dumps(run.base)})\n"
        load += f"tester = PeftModel.from_pretrained(base, {model})"
        note = f"\n\nThe base model was a folder, {escape(run.base)}, which is necessary too."
    sampling = {name: run.config[name] for name in _SAMPLING if run.config.get(name) is not None}
    arguments = "".join(f", {name}={json.dumps(value)}" for name, value in sampling.items())
    code = (
        f"{imports}\n\n{load}\ntokenizer = AutoTokenizer.from_pretrained({model})\n\n"
        'conversation = "What did you do last weekend?\\n"  # one utterance per line\n'
        'inputs = tokenizer(conversation, return_tensors="pt").to(tester.device)\n'
        f"output = tester.generate(**inputs, do_sample=True{arguments})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    return fenced(code, "python") + note


def _training(run: Run) -> str:
    if not run.written:
        return "It was trained from Python, with these settings:\n\n" + as_yaml(run.config)
    names = {"system": run.system, "algorithm": run.algorithm}  # which an old configuration may lack
    return (
        fenced("astra-trl train --config config.yaml", "bash")
        + "\n\nwith this `config.yaml`, in which names without a slash may be files and folders of the person who "
        "trained it:\n\n" + as_yaml({**names, **run.written, **names})
    )


def _is_hub_id(model: str) -> bool:
    # A bare name is more often a folder's than that of one of the few models without a namespace.
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model, re.ASCII) is not None
