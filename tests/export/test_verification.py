"""How far an export is from its reference: figures by hand, PEFT's forward in float32, and what a bound refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from adapterhub import AdapterRegistry
from adapterhub.dataset.records import read_records
from adapterhub.errors import (
    AdapterIncompatibleError,
    ConfigError,
    DatasetError,
    ExportError,
    InvalidRequestError,
)
from adapterhub.export import MergeVerifier, merge_adapter
from adapterhub.export.model_logits import model_logits, verify_model
from adapterhub.export.verification import (
    MERGE_BOUNDS,
    TokenSequence,
    Verification,
    VerificationBound,
    VerificationTexts,
    compare_logits,
)
from adapterhub.export.verification_texts import SHIPPED_TEXTS, verification_texts
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest
from adapterhub.registry.cards import PromptProfile
from tests.tiny import ALL_LINEAR, make_adapter, make_base

SEQUENCES = tuple(
    TokenSequence(tuple(7 * length + 3 * place for place in range(length)), length // 3)
    for length in (30, 9, 17)
)
TEXTS = VerificationTexts("numbers", SEQUENCES)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16, two adapters, and the first one merged."""
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base", dtype=torch.bfloat16)
    for seed, name in enumerate(("one", "two"), start=1):
        make_adapter(folder / name, base, seed=seed)
    merge_adapter(base, folder / "one", folder / "merged")
    return folder


def stored(folder: Path) -> StoredLoraRequest:
    return StoredLoraRequest(folder.name, folder.name, folder)


def logits(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).log()


class TestFigures:
    def test_they_are_those_by_hand(self):
        texts = VerificationTexts("two", (TokenSequence((0, 1, 0), 1), TokenSequence((1,))))
        reference = [logits((0.5, 0.5), (0.9, 0.1)), logits((0.2, 0.8))]
        exported = [logits((0.25, 0.75), (0.9, 0.1)), logits((0.6, 0.4)) + 5]

        found = compare_logits(texts, reference, exported)

        first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
        last = 0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(0.8 / 0.4)
        assert found.kl_divergence == pytest.approx((first + 0 + last) / 3)
        assert (found.texts, found.tokens) == ("two", 3)
        # The reference's first row is a draw, of which the first token counts.
        assert found.top1_agreement == pytest.approx(1 / 3)
        # Only one token is predicted by a compared position: the 0 after the 1.
        assert (found.reference_perplexity, found.perplexity) == (pytest.approx(2), pytest.approx(4))
        assert found.perplexity_change == pytest.approx(1)
        assert found.max_logit_difference == pytest.approx(5 + math.log(0.6 / 0.2))

    def test_a_token_without_probability_in_both_costs_nothing(self):
        texts = VerificationTexts("one", (TokenSequence((0, 0)),))
        rows = logits((1.0, 0.0), (1.0, 0.0))
        found = compare_logits(texts, [rows], [rows])
        assert (found.kl_divergence, found.perplexity, found.max_logit_difference) == (0, 1, 0)

    def test_probability_taken_away_is_infinitely_far(self):
        texts = VerificationTexts("one", (TokenSequence((0, 0)),))
        found = compare_logits(texts, [logits((0.5, 0.5), (0.5, 0.5))], [logits((0.0, 1.0), (0.5, 0.5))])
        assert (found.kl_divergence, found.perplexity) == (math.inf, math.inf)
        with pytest.raises(ExportError):
            VerificationBound(1e9, 1e9).check(found)

    def test_what_cannot_be_compared_is_an_error(self):
        texts, row = VerificationTexts("one", (TokenSequence((0,)),)), logits((0.5, 0.5))
        with pytest.raises(ExportError, match=r"shape \(1, 3\)"):
            compare_logits(texts, [row], [logits((0.5, 0.25, 0.25))])
        with pytest.raises(ExportError, match="not numbers"):
            compare_logits(texts, [row], [row * math.nan])
        with pytest.raises(InvalidRequestError, match="no tokens"):
            compare_logits(VerificationTexts("none", ()), [], [])

    def test_progress_counts_predictions(self):
        calls = []
        rows = [torch.zeros(one.compared, 999) for one in SEQUENCES]
        compare_logits(TEXTS, rows, rows, progress=lambda *call: calls.append(call))
        assert calls == [(20, 38), (26, 38), (38, 38)]


class TestBound:
    FOUND = Verification("few", 10, 0.1, 0.001, 1.0, 2.01, 2.0)

    def test_what_is_within_passes(self):
        VerificationBound(0.001, 0.0051).check(self.FOUND)

    @pytest.mark.parametrize("bound", [VerificationBound(0.0009, 1), VerificationBound(1, 0.004)])
    def test_what_is_beyond_is_refused_with_the_figures(self, bound: VerificationBound):
        with pytest.raises(
            ExportError, match=r"KL divergence 1\.0e-03 nats; perplexity 2\.0100.*\(\+0\.50%\)"
        ):
            bound.check(self.FOUND)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mixtral", "gemma3"])
def test_the_logits_are_those_of_pefts_forward(kind: str, dora: bool, tmp_path: Path):
    """The weights stay on disk; Mixtral's are joined, GPT-2's transposed, with biases."""
    base = make_base(tmp_path / "base", kind, dtype=torch.bfloat16)
    modules = ["q_proj"] if kind == "mixtral" else ALL_LINEAR[kind]
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=modules, use_dora=dora)

    actual = list(model_logits(base, SEQUENCES, adapter=stored(adapter)))

    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    )
    for sequence, rows in zip(SEQUENCES, actual, strict=True):
        with torch.no_grad():
            expected = adapted(input_ids=torch.tensor([sequence.token_ids])).logits[0, sequence.start :]
        torch.testing.assert_close(rows, expected, rtol=0, atol=2e-5)


class TestModels:
    def test_a_merge_that_only_rounds_is_within_its_bound(self, folder: Path):
        found = verify_model(folder / "merged", folder / "base", stored(folder / "one"), TEXTS)
        MERGE_BOUNDS["BF16"].check(found)
        assert found.kl_divergence > 1e-6  # rounding is not nothing

    def test_a_merge_whose_bound_is_passed_leaves_nothing(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Without verification it is kept; the figures of one that passes are in both files."""
        monkeypatch.setitem(MERGE_BOUNDS, "BF16", VerificationBound(1e-9, 1))
        with pytest.raises(ExportError, match=r"on 1,\d\d\d tokens of shipped texts: KL divergence"):
            merge_adapter(folder / "base", folder / "one", tmp_path / "merged")
        assert list(tmp_path.iterdir()) == []
        assert (
            merge_adapter(folder / "base", folder / "one", tmp_path / "kept", verify=False).verification
            is None
        )
        lineage = json.loads((folder / "merged" / "merge.json").read_text())
        figures = lineage["verification"]["merged"]
        assert figures["tokens"] > 100
        told = (
            f"perplexity {figures['perplexity']:.4f}, the reference's {figures['reference_perplexity']:.4f}"
        )
        assert told in (folder / "merged" / "README.md").read_text()

    def test_an_adapter_of_4_bit_training_is_compared_with_that_too(self, folder: Path, tmp_path: Path):
        registry = AdapterRegistry(tmp_path / "registry")
        registry.register("one", folder / "one", base=folder / "base", quantization="nf4")
        adapter = registry.folder(registry.get("one"))
        of_own, of_trained = (
            merge_adapter(folder / "base", adapter, tmp_path / f"merged-{exact}", exact=exact).verification
            for exact in (False, True)
        )
        for each in (of_own, of_trained):
            assert 100 * each.merged.kl_divergence < each.without_exact.kl_divergence
        # The same but for the rounding of the weights that were written.
        assert of_own.without_exact.kl_divergence == pytest.approx(
            of_trained.without_exact.kl_divergence, rel=0.05
        )

    def test_a_base_without_a_tokenizer_is_merged_unverified(self, folder: Path, tmp_path: Path):
        bare = tmp_path / "base"
        shutil.copytree(folder / "base", bare, ignore=shutil.ignore_patterns("tokenizer*"))
        with pytest.raises(ConfigError, match="cannot be verified") as refused:
            merge_adapter(bare, folder / "one", tmp_path / "merged")
        assert "--no-verify" in (refused.value.hint or "")
        merge_adapter(bare, folder / "one", tmp_path / "merged", verify=False)

    def test_data_that_cannot_be_read_is_an_error_before_weights_are_written(
        self, folder: Path, tmp_path: Path
    ):
        written: list[int] = []
        with pytest.raises(DatasetError, match=r"none\.jsonl"):
            merge_adapter(
                folder / "base",
                folder / "one",
                tmp_path / "merged",
                verify=MergeVerifier(tmp_path / "none.jsonl"),
                progress=lambda done, total: written.append(done),
            )
        assert written == list(tmp_path.iterdir()) == []

    def test_another_adapter_is_not(self, folder: Path):
        found = verify_model(folder / "merged", folder / "base", stored(folder / "two"), TEXTS)
        with pytest.raises(ExportError, match="does not predict as its reference"):
            MERGE_BOUNDS["BF16"].check(found)

    def test_a_blend_is_the_sum_of_its_parts(self, folder: Path):
        parts = [(stored(folder / "one"), 0.6), (stored(folder / "two"), 0.4)]
        blend = list(model_logits(folder / "base", SEQUENCES, adapter=BlendedLoraRequest.of("both", parts)))
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), folder / "one", "one"
        )
        adapted.load_adapter(folder / "two", "two")
        adapted.add_weighted_adapter(["one", "two"], [0.6, 0.4], "both", combination_type="cat")
        adapted.set_adapter("both")
        with torch.no_grad():
            expected = adapted(input_ids=torch.tensor([SEQUENCES[0].token_ids])).logits[
                0, SEQUENCES[0].start :
            ]
        torch.testing.assert_close(blend[0], expected, rtol=0, atol=2e-5)

    def test_the_weights_stay_on_disk_without_a_warning(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        seen = []
        load = AutoModelForCausalLM.from_pretrained
        monkeypatch.setattr(
            AutoModelForCausalLM,
            "from_pretrained",
            lambda *_, **settings: seen.append(load(*_, **settings)) or seen[0],
        )
        list(model_logits(folder / "base", SEQUENCES, adapter=stored(folder / "one")))
        assert all(weight.is_meta for weight in seen[0].parameters())  # between two layers, and so afterwards
        assert not [record for record in caplog.records if record.name.startswith("accelerate")]

    def test_the_reference_may_be_a_quantised_base(self, folder: Path):
        """What an adapter was trained on; the merge into 16 bits is further from it than from its own base."""
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        arguments = folder / "merged", folder / "base", stored(folder / "one"), TEXTS
        on_nf4, on_16_bits = verify_model(*arguments, quantization=nf4), verify_model(*arguments)
        assert on_nf4.kl_divergence > 100 * on_16_bits.kl_divergence

    def test_what_cannot_be_loaded_is_an_error(self, folder: Path, tmp_path: Path):
        with pytest.raises(ConfigError, match=r"config\.json"):
            next(model_logits(tmp_path, SEQUENCES))
        (tmp_path / "config.json").write_text((folder / "base" / "config.json").read_text())
        with pytest.raises(ConfigError, match="could not be loaded"):
            next(model_logits(tmp_path, SEQUENCES))
        other = make_base(tmp_path / "gpt2", "gpt2")
        with pytest.raises(AdapterIncompatibleError):
            next(model_logits(other, SEQUENCES, adapter=stored(folder / "one")))


class TestTexts:
    def test_held_out_answers_are_compared_and_their_prompts_only_read(self, base: Path, tmp_path: Path):
        data = tmp_path / "heldout.jsonl"
        messages = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three four"}]
        data.write_text(json.dumps({"messages": messages}) + "\n")

        texts = verification_texts(base, PromptProfile(system="Count."), examples=["not read"], heldout=data)

        tokenizer, (sequence,) = AutoTokenizer.from_pretrained(base), texts.sequences
        assert texts.description == "held-out answers of heldout.jsonl"
        assert tokenizer.decode(sequence.token_ids) == (
            "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\none two<|im_end|>\n"
            "<|im_start|>assistant\nthree four<|im_end|>"
        )
        assert tokenizer.decode(sequence.token_ids[sequence.start + 1 :]) == "three four<|im_end|>"

    def test_without_data_the_cards_requests_and_the_shipped_texts_are_read(self, base: Path):
        texts = verification_texts(base, PromptProfile(format="plain"), examples=["one two", "привет"])
        tokenizer = AutoTokenizer.from_pretrained(base)
        assert texts.description == "shipped texts and 2 example requests of the card"
        requests = [tokenizer.decode(one.token_ids) for one in texts.sequences[:2]]
        assert requests == ["Instruction: one two\nResponse:", "Instruction: привет\nResponse:"]
        assert texts.sequences[0].start == 0
        assert 0 < texts.tokens <= 1_280
        assert all(one.compared <= 128 and len(one.token_ids) <= 256 for one in texts.sequences)

    def test_the_shipped_texts_are_conversations_in_several_scripts(self):
        answers = "".join(record.answers for record in read_records(SHIPPED_TEXTS))
        for script in ("Солнечный", "Wärme", "يثبّت", "पानी", "本金", "ましょう", "👍", "def "):
            assert script in answers, script

    def test_data_that_cannot_be_read_is_an_error(self, base: Path, tmp_path: Path):
        with pytest.raises(DatasetError):
            verification_texts(base, PromptProfile(), heldout=tmp_path / "none.jsonl")
        data = tmp_path / "long.jsonl"
        messages = [{"role": "user", "content": "one " * 999}, {"role": "assistant", "content": "two"}]
        data.write_text(json.dumps({"messages": messages}) + "\n")
        with pytest.raises(InvalidRequestError, match="Not one text"):
            verification_texts(base, PromptProfile(), heldout=data)
