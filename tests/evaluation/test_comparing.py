"""Comparing adapters on one base: against transformers and PEFT, and against what a hub answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry, load_base
from adapterhub.errors import (
    AdapterIncompatibleError,
    AdapterNotFoundError,
    DatasetError,
    InvalidRequestError,
)
from adapterhub.evaluation import Comparison, ComparisonSettings, EvaluationData, compare, read_data
from tests.tiny import make_adapter, make_base

SETTINGS = ComparisonSettings(max_tokens=8)
QUESTIONS = ["one", "two three", "the quick brown fox jumps over", "привет"]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "held.jsonl"
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text} four"}]
        for text in QUESTIONS
    ]
    turns += [[*turns[0], *turns[1]]]  # two answers
    path.write_text("".join(f"{json.dumps({'messages': one})}\n" for one in turns))
    return path


@pytest.fixture(scope="module")
def data(held_out: Path) -> EvaluationData:
    return read_data(held_out)


Compare = Callable[..., Comparison]


@pytest.fixture(scope="module")
def comparing(tiny_base: Path, tiny_registry: Path) -> Compare:
    def run(adapter: str, data: EvaluationData, **options: Any) -> Comparison:
        base = load_base(tiny_base, quantization=None)
        return compare(
            base, AdapterRegistry(tiny_registry), adapter, data, **{"settings": SETTINGS, **options}
        )

    return run


@pytest.fixture(scope="module")
def comparison(comparing: Compare, data: EvaluationData) -> Comparison:
    return comparing("json", data, against=["base", "code@1"])


def reference_losses(base: Path, adapter: Path | None, held_out: Path) -> list[tuple[float, int]]:
    """The losses by transformers and PEFT, of the tokens that the chat template marks as the assistant's."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    found = []
    for line in held_out.read_text().splitlines():
        encoded = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = torch.tensor([encoded["input_ids"]]), torch.tensor(encoded["assistant_masks"])
        with torch.inference_mode():
            logprobs = model.eval()(input_ids=ids).logits[0].log_softmax(-1)
        of_each = -logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        found.append((float(of_each[mask[1:] == 1].sum()), int(mask[1:].sum())))
    return found


@pytest.mark.parametrize(("contender", "adapter"), [("base", None), ("json@1", "json"), ("code@1", "code")])
def test_the_perplexity_is_that_of_transformers_and_peft(
    comparison: Comparison,
    contender: str,
    adapter: str | None,
    tiny_base: Path,
    tiny_adapters: dict[str, Path],
    held_out: Path,
):
    folder = tiny_adapters[adapter] if adapter else None
    expected = reference_losses(tiny_base, folder, held_out)
    found = comparison.perplexities[contender]
    assert found.tokens == tuple(tokens for _, tokens in expected)
    assert found.losses == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    total, tokens = sum(loss for loss, _ in expected), sum(tokens for _, tokens in expected)
    assert found.estimate.value == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert found.estimate.low <= found.estimate.value <= found.estimate.high


def test_the_ratio_is_to_each_other_contender(comparison: Comparison):
    values = {name: one.estimate.value for name, one in comparison.perplexities.items()}
    assert {name: ratio.value for name, ratio in comparison.ratios.items()} == {
        name: pytest.approx(values["json@1"] / values[name]) for name in ("base", "code@1")
    }


def test_the_answers_are_those_of_a_hub(
    comparison: Comparison, data: EvaluationData, tiny_base: Path, tiny_registry: Path
):
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None) as hub:
        for name in ("base", "json@1", "code@1"):
            expected = [
                hub.generate(list(prompt.messages), name, max_tokens=8, temperature=0)
                for prompt in data.prompts
            ]
            (found,) = (one.answers for one in comparison.answers if one.contender == name)
            assert [one.text for one in found] == [one.text for one in expected]
            assert [one.tokens for one in found] == [one.usage.completion_tokens for one in expected]
            assert [one.truncated for one in found] == [one.finish_reason == "length" for one in expected]
    texts = {one.contender: [answer.text for answer in one.answers] for one in comparison.answers}
    assert len({tuple(each) for each in texts.values()}) == 3  # else the test could confuse them


def test_a_blend_is_compared_too(comparing: Compare, comparison: Comparison, data: EvaluationData):
    blend = comparing("json:1+code:0.5", data, against=["json"])
    assert (blend.adapter, blend.against) == ("json@1:1+code@1:0.5", ("json@1",))
    assert blend.perplexities["json@1"].losses == pytest.approx(comparison.perplexities["json@1"].losses)
    assert blend.perplexities[blend.adapter].losses != pytest.approx(blend.perplexities["json@1"].losses)


def test_a_sweep_has_each_setting_once(comparing: Compare, data: EvaluationData):
    settings = ComparisonSettings(max_tokens=8, temperatures=(0, 0.7, 5.0), top_ps=(1.0, 0.5))
    found = comparing("json", data, settings=settings)
    assert [(one.contender, str(one.sampling)) for one in found.answers] == [
        (name, sampling)
        for sampling in (
            "greedy", "temperature 0.7, top-p 1", "temperature 0.7, top-p 0.5", "temperature 5, top-p 1",
            "temperature 5, top-p 0.5",
        )
        for name in ("base", "json@1")
    ]  # fmt: skip
    of_base = [one.answers for one in found.answers if one.contender == "base"]
    assert of_base[0] != of_base[3]
    assert comparing("json", data, settings=settings).answers == found.answers  # the seed decides


def test_the_same_penalty_is_for_all(comparing: Compare, comparison: Comparison, data: EvaluationData):
    found = comparing("json", data, settings=ComparisonSettings(max_tokens=8, repetition_penalty=5.0))
    for name in ("base", "json@1"):
        before, after = (
            next(one.answers for one in each.answers if one.contender == name) for each in (comparison, found)
        )
        assert before != after


def test_the_base_is_measured_once(comparing: Compare, data: EvaluationData, tmp_path: Path):
    steps: list[tuple[int, int, str]] = []
    options = {"baselines": tmp_path / "kept", "progress": lambda *step: steps.append(step)}
    first = comparing("json", data, **options)
    assert {note.split(":")[0] for *_, note in steps} == {"base", "json@1"}
    assert steps[-1][:2] == (20, 20)
    steps.clear()
    second = comparing("code", data, **options)
    assert {note.split(":")[0] for *_, note in steps} == {"code@1"}
    assert steps[-1][:2] == (20, 20)
    assert second.perplexities["base"] == first.perplexities["base"]
    assert second.answers[0] == first.answers[0]
    steps.clear()
    comparing("json", data, **options, settings=ComparisonSettings(max_tokens=7))
    # The losses are those of before, and answers of another length are not.
    assert {note for *_, note in steps} == {
        "base: answers, greedy",
        "json@1: losses",
        "json@1: answers, greedy",
    }


def test_a_damaged_baseline_is_measured_again(comparing: Compare, data: EvaluationData, tmp_path: Path):
    first = comparing("json", data, baselines=tmp_path)
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert comparing("json", data, baselines=tmp_path).perplexities["base"] == first.perplexities["base"]


def test_the_profile_of_the_adapter_writes_the_prompts_of_all(
    tiny_base: Path, tiny_adapters: dict[str, Path], data: EvaluationData, tmp_path: Path
):
    registry = AdapterRegistry(tmp_path)
    registry.register("json", tiny_adapters["json"], base=tiny_base, prompt={"system": "the lazy dog"})
    registry.register("code", tiny_adapters["json"], base=tiny_base)
    base = load_base(tiny_base, quantization=None)
    found = compare(base, registry, "json", data, against=["base", "code"], settings=SETTINGS)
    assert found.perplexities["code@1"].losses == pytest.approx(found.perplexities["json@1"].losses)
    plain = compare(load_base(tiny_base, quantization=None), registry, "code", data, settings=SETTINGS)
    assert plain.perplexities["base"].losses != pytest.approx(found.perplexities["base"].losses)


def test_a_file_that_the_adapter_was_trained_on_is_a_warning(
    tiny_base: Path, tiny_adapters: dict[str, Path], data: EvaluationData, tmp_path: Path
):
    registry = AdapterRegistry(tmp_path)
    dataset = f"train.jsonl sha256:{data.files[0].sha256}"
    registry.register("json", tiny_adapters["json"], base=tiny_base, datasets=[dataset])
    found = compare(load_base(tiny_base, quantization=None), registry, "json", data, settings=SETTINGS)
    assert found.warnings == (
        "held.jsonl is on the adapter's card as training or validation data, so its figures may be too good",
    )


def test_only_what_can_be_compared_is(comparing: Compare, data: EvaluationData):
    with pytest.raises(InvalidRequestError, match="cannot be compared with itself"):
        comparing("json", data, against=["base", "json@1"])
    with pytest.raises(InvalidRequestError, match="nothing to compare with"):
        comparing("json", data, against=[])
    for name in ("auto", "base"):
        with pytest.raises(InvalidRequestError, match="no adapter to compare"):
            comparing(name, data)
    with pytest.raises(AdapterNotFoundError):
        comparing("json", data, against=["jsn"])


def test_what_does_not_fit_the_context_is_found_first(comparing: Compare, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text(f"one\n{'the lazy dog ' * 100}\n")
    with pytest.raises(InvalidRequestError, match=r"Prompt 2 has \d+ tokens"):
        comparing("json", read_data(prompts=tmp_path / "prompts.txt"))


def test_records_without_an_answer_in_the_limit_are_an_error(comparing: Compare, data: EvaluationData):
    with pytest.raises(DatasetError, match="has an answer within 3 tokens"):
        comparing("json", data, settings=ComparisonSettings(max_length=3))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, tiny_base: Path, data: EvaluationData):
    other = make_base(tmp_path / "other", seed=7)
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", make_adapter(tmp_path / "adapter", other), base=other)
    with pytest.raises(AdapterIncompatibleError):
        compare(load_base(tiny_base, quantization=None), registry, "json", data, settings=SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [{"temperatures": ()}, {"temperatures": (-1,)}, {"top_ps": (0,)}, {"max_tokens": 0}, {"tokens": 3}],
)
def test_settings_that_are_not_valid_are_named(settings: dict[str, Any]):
    with pytest.raises(InvalidRequestError, match=next(iter(settings))):
        ComparisonSettings.of(**settings)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {}),
        ("gemma3", {}),
        ("llama", {"use_dora": True}),
        ("llama", {"target_modules": ["q_proj", "down_proj", "lm_head"]}),  # the head gets fewer tokens
    ],
    ids=["gpt2", "gemma3", "dora", "head"],
)
def test_other_architectures_and_adapters(
    kind: str, settings: dict[str, Any], tmp_path: Path, held_out: Path
):
    base = make_base(tmp_path / kind, kind)
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", adapter, base=base)
    found = compare(
        load_base(base, quantization=None), registry, "json", read_data(held_out), settings=SETTINGS
    )
    expected = reference_losses(base, adapter, held_out)
    assert found.perplexities["json@1"].losses == pytest.approx([loss for loss, _ in expected], rel=1e-4)
