"""Every trainer pushes the tester with its tokenizer, or its adapter, under the tags of what made it."""

import fnmatch
from types import SimpleNamespace

import pytest
import test_dpo
import test_groups
from huggingface_hub import HfApi
from test_run import HAS_PPO


def make(algorithm, folder, **kwargs):
    if algorithm == "dpo":
        return test_dpo.make_trainer(folder, num_train_epochs=1, **kwargs)
    if algorithm == "ppo":
        import test_ppo

        return test_ppo.make_trainer(folder, num_train_epochs=1, **kwargs)
    return test_groups.make_trainer(folder, algorithm, num_train_epochs=1, **kwargs)


@pytest.mark.parametrize("algorithm", ["dpo", "grpo", "rloo", *(["ppo"] if HAS_PPO else [])])
@pytest.mark.parametrize("peft", [False, True])
def test_push_to_hub(tmp_path, monkeypatch, algorithm, peft):
    pushed = []

    def upload(api, *, repo_id, folder_path, ignore_patterns=(), **kwargs):
        names = [str(path.relative_to(folder_path)) for path in tmp_path.rglob("*") if path.is_file()]
        pushed.append((repo_id, [n for n in names if not any(fnmatch.fnmatch(n, p) for p in ignore_patterns)]))

    repo = SimpleNamespace(repo_id="someone/tester", namespace="someone")
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    trainer = make(algorithm, tmp_path, peft_config=test_groups.LORA if peft else None)
    trainer.train()
    trainer.push_to_hub()
    ((repo_id, names),) = pushed
    assert repo_id == "someone/tester"
    weights = "adapter_model.safetensors" if peft else "model.safetensors"
    assert {weights, "tokenizer.json", "README.md"} <= set(names)
    assert ("adapter_model.safetensors" in names) == peft
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(f"- {tag}\n" in card for tag in ("trl", "astra-trl", algorithm))
