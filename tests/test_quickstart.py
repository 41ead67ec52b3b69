"""The README's quick start runs as it stands there, with local files in place of what it would download."""

import re
from pathlib import Path

import datasets
import torch
from test_prompts import write_zip

from astra_trl import ASTDPOTrainer

README = Path(__file__).parent.parent / "README.md"


def test_quick_start(tmp_path, monkeypatch, gpt2_folder, detoxify_files):
    (code,) = re.findall(r"```python\n(from astra_trl import .*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    replaced = {
        "meta-llama/Llama-3.1-8B": str(gpt2_folder),
        'device="cuda"': 'device="cpu"',
        'output_dir="tester"': 'output_dir="tester", num_train_epochs=2, save_strategy="no"',
    }
    for written, local in replaced.items():
        assert written in code
        code = code.replace(written, local)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ASTRA_TRL_CONVOKIT_ZIP", str(write_zip(tmp_path / "corpus.zip")))
    checkpoint = torch.load(detoxify_files / "tiny.ckpt", weights_only=False)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: checkpoint)
    pushed = []
    monkeypatch.setattr(ASTDPOTrainer, "push_to_hub", lambda trainer: pushed.append(trainer))

    exec(code, {})
    (trainer,) = pushed
    assert trainer.state.global_step == 2 * 4  # 14 pairs of 2 trees in batches of 4
    assert trainer.sampler.system.target.model is trainer.sampler.system.baseline.model
    assert (tmp_path / "tester" / "exchanges.jsonl").stat().st_size
