import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from transformers import AutoModelForCausalLM

from astra_trl import HFASTSystem, HFBackend, InputError, KeywordScorer

SCORER = KeywordScorer(["soup"])


def test_frozen_roles_of_one_id_share_one_copy_and_the_tester_has_its_own(gpt2_folder):
    path = str(gpt2_folder)
    system = HFASTSystem(path, path, path, SCORER, device="cpu")
    assert system.target.model is system.baseline.model
    assert system.tester.model is not system.target.model
    assert system.tester.model.dtype == torch.float32
    assert system.tester.sampling.top_p == 0.7  # the paper's


def test_one_loaded_model_may_stand_in_every_role(gpt2_folder):
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    system = HFASTSystem(model, model, model, SCORER)
    assert system.tester.model is system.target.model is model
    assert system.baseline is None
    assert system.tester is not system.target


def test_model_init_kwargs_reach_from_pretrained(gpt2_folder):
    path = str(gpt2_folder)
    system = HFASTSystem(path, path, None, SCORER, model_init_kwargs={"dtype": "bfloat16"})
    assert system.tester.model.dtype == system.target.model.dtype == torch.bfloat16


def test_a_model_that_cannot_be_loaded_is_named_with_its_role(gpt2_folder, tmp_path):
    with pytest.raises(InputError, match="target 'no/such-model' could not be loaded") as caught:
        HFASTSystem(str(gpt2_folder), "no/such-model", None, SCORER)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="tester .* could not be loaded"):
        HFASTSystem(str(tmp_path), str(gpt2_folder), None, SCORER)


def test_a_loaded_model_without_a_saved_tokenizer_is_refused(gpt2_folder):
    with pytest.raises(InputError, match="tester is a loaded model and no tokenizer was saved with it"):
        HFASTSystem(make_gpt2(make_tokenizer()), str(gpt2_folder), None, SCORER)


def test_tester_and_baseline_of_different_vocabularies_are_refused(gpt2_folder):
    other = make_tokenizer(290)
    baseline = HFBackend(make_gpt2(other), other)
    with pytest.raises(InputError, match="tester and baseline have different vocabularies"):
        HFASTSystem(str(gpt2_folder), str(gpt2_folder), baseline, SCORER)
    with pytest.raises(InputError, match="different vocabularies"):  # no tokenizer of its own: the sizes tell
        HFASTSystem(str(gpt2_folder), str(gpt2_folder), make_gpt2(other), SCORER)
    HFASTSystem(str(gpt2_folder), HFBackend(make_gpt2(other), other), None, SCORER)  # the target may differ


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_reported(gpt2_folder):
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        HFASTSystem(str(gpt2_folder), str(gpt2_folder), None, SCORER, device="cuda")
