"""A light fine-tune, of 30 steps on the shipped base in 4 bits, keeps its perplexity in every merge that is offered.

PEFT's merge into the 4-bit weights does not: quantising the sum rounds most of the fine-tune away.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig

from adapterhub.base import load_base, locate_base
from adapterhub.export import RoundTrip, merge_adapter
from adapterhub.export.model_logits import model_logits, verify_model
from adapterhub.export.verification import TokenSequence, Verification, VerificationTexts, compare_logits
from adapterhub.export.verification_texts import verification_texts
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.registry.cards import PromptProfile
from examples.demo.tasks import support_task

STEPS, HELD_OUT = 30, 6
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


@pytest.fixture(scope="module")
def base() -> Path:
    return locate_base("adapterhub-demo")


def tokens_of(records: list[dict], file: Path, base: Path) -> VerificationTexts:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return verification_texts(base, PromptProfile(), heldout=file)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory, base: Path) -> VerificationTexts:
    return tokens_of(
        support_task.generate("heldout", HELD_OUT, 3), tmp_path_factory.mktemp("data") / "heldout.jsonl", base
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> StoredLoraRequest:
    folder = tmp_path_factory.mktemp("fine-tune")
    records = support_task.generate("train", STEPS, 1)
    batches = [tokens_of([record], folder / "train.jsonl", base).sequences[0] for record in records]
    torch.manual_seed(0)
    loaded = load_base(base, compute_dtype="float32", training=True).model
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded, config).train()
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=2e-4)
    for sequence in batches:
        ids = torch.tensor([sequence.token_ids])
        labels = ids.clone()
        labels[:, : sequence.start + 1] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return StoredLoraRequest("light", "light", folder / "adapter")


@pytest.fixture(scope="module")
def as_trained(base: Path, adapter: StoredLoraRequest, heldout: VerificationTexts) -> list[torch.Tensor]:
    """The logits of the adapter on the base in 4 bits."""
    return list(model_logits(base, heldout.sequences, adapter=adapter, quantization=NF4))


def logits_of(model, sequences: tuple[TokenSequence, ...]) -> Iterator[torch.Tensor]:
    for sequence in sequences:
        with torch.no_grad():
            yield model(input_ids=torch.tensor([sequence.token_ids])).logits[0, sequence.start :]


def check_kept(found: Verification) -> None:
    assert abs(found.perplexity_change) < 0.005, str(found)


def test_the_fine_tune_is_light_but_real(
    base: Path, heldout: VerificationTexts, as_trained: list[torch.Tensor]
):
    found = compare_logits(heldout, as_trained, model_logits(base, heldout.sequences, quantization=NF4))
    assert found.reference_perplexity < 8 < 40 < found.perplexity


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_a_merge_into_the_bases_own_weights_keeps_it(
    dtype: str | None,
    base: Path,
    adapter: StoredLoraRequest,
    heldout: VerificationTexts,
    tmp_path: Path,
):
    merge_adapter(base, adapter.folder, tmp_path / "merged", dtype=dtype, verify=False)
    check_kept(verify_model(tmp_path / "merged", base, adapter, heldout))


def test_a_merge_into_the_weights_of_training_keeps_it_as_it_was_trained(
    base: Path,
    adapter: StoredLoraRequest,
    heldout: VerificationTexts,
    as_trained: list[torch.Tensor],
    tmp_path: Path,
):
    merge_adapter(base, adapter.folder, tmp_path / "merged", exact=RoundTrip(), verify=False)
    check_kept(compare_logits(heldout, as_trained, model_logits(tmp_path / "merged", heldout.sequences)))


def test_pefts_merge_into_4_bits_does_not(
    base: Path, adapter: StoredLoraRequest, heldout: VerificationTexts, as_trained: list[torch.Tensor]
):
    loaded = load_base(base, compute_dtype="float32", training=True).model  # unpacked, which PEFT needs
    with pytest.warns(UserWarning, match="4-bit linear may get different generations"):
        merged = PeftModel.from_pretrained(loaded, adapter.folder).merge_and_unload()
    found = compare_logits(heldout, as_trained, logits_of(merged, heldout.sequences))
    assert found.perplexity_change > 1, str(found)  # more than twice the perplexity
