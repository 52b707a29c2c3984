"""Which names, shapes and configs fit a base; PEFT's own injection is the reference for what a config asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners import tuners_utils
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.base.fit import check_against_base, check_fit
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterHubError, AdapterIncompatibleError, AdapterInvalidError, ConfigError
from adapterhub.peft_format.checks import LoraShape, inspect_adapter
from adapterhub.peft_format.config import LoraSettings
from tests.registry.maker import module_names
from tests.tiny import make_adapter, make_base

# PEFT says that it saves the output layer, and that tied weights are not merged with it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
Q0, V0, Q1, V1 = module_names()
RANK_2 = LoraSettings(r=2)


def layers_of(shapes: dict[str, tuple[int, int]], prefix: str = "model") -> LinearLayers:
    parameters = frozenset(f"{name}.weight" for name in shapes)
    return LinearLayers(shapes, {}, frozenset(), None, {}, parameters, prefix, (), ())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"other": (8, 8)}, f"None of the adapter's 2 modules.*'{Q0}', '{Q1}' are missing"),
        ({Q0: (8, 8)}, f"Only 1 of the adapter's 2 modules.*'{Q1}' is missing"),
        ({Q0: (8, 8), Q1: (8, 16)}, rf"'{Q1}' has shape \(8, 16\), not \(8, 8\)"),
    ],
)
def test_modules_that_the_base_lacks(base: dict[str, tuple[int, int]], message: str) -> None:
    adapter = {Q0: LoraShape(2, 8, 8), Q1: LoraShape(2, 8, 8)}
    with pytest.raises(AdapterIncompatibleError, match=message):
        check_fit(adapter, layers_of(base), RANK_2)


def test_only_the_first_missing_modules_are_named() -> None:
    adapter = {name: LoraShape(2, 8, 8) for name in module_names(layers=20)}
    with pytest.raises(AdapterIncompatibleError, match="and 37 more are missing"):
        check_fit(adapter, layers_of({}), RANK_2)


def test_names_of_the_inner_model_have_a_hint() -> None:
    inner = {name.removeprefix("model."): LoraShape(2, 8, 8) for name in (Q0, Q1)}
    with pytest.raises(AdapterIncompatibleError) as caught:
        check_fit(inner, layers_of({Q0: (8, 8), Q1: (8, 8)}), RANK_2)
    assert "inner model" in str(caught.value.hint)


# What a config asks for


CONFIGS: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "down_proj"]},
    "whole names": {"target_modules": ["model.layers.1.mlp.up_proj", "layers.0.self_attn.k_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "all linear without some": {"target_modules": "all-linear", "exclude_modules": ["down_proj", "o_proj"]},
    "without the head": {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["lm_head"]},
    "excluded by an expression": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": r".*\.0\..*v_proj",
    },
    "an expression": {"target_modules": r".*\.1\.self_attn\.(q_proj|k_proj)"},
    "some layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "one layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 0},
    "some layers of a pattern": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_peft_saves_for_a_config_is_what_it_asks_for(tiny_base: Path, tmp_path: Path, config) -> None:
    """Whole, it fits; without any one of its modules it contradicts the config."""
    folder = make_adapter(tmp_path / "whole", tiny_base, **config)
    assert check_against_base(inspect_adapter(folder), folder, tiny_base) == ()
    weights = load_file(folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".lora_")[0] for name in weights})
    saved = json.loads((folder / "adapter_config.json").read_bytes())
    for module in {modules[0], modules[-1]}:
        partial = shutil.copytree(folder, tmp_path / module)
        rest = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{module}.")}
        if not rest:
            continue
        save_file(rest, partial / "adapter_model.safetensors")
        # PEFT resolves "all-linear" when it saves; some tools write it as it was given.
        for written in (
            {},
            {"target_modules": "all-linear"} if config["target_modules"] == "all-linear" else {},
        ):
            (partial / "adapter_config.json").write_text(json.dumps({**saved, **written}))
            with pytest.raises(
                AdapterInvalidError, match="asks for 1 layers of the base without weights"
            ) as caught:
                check_against_base(inspect_adapter(partial), partial, tiny_base)
            assert module.removeprefix("base_model.model.") in caught.value.message


def test_targets_that_the_base_does_not_have_are_not_asked_for() -> None:
    settings = LoraSettings(r=2, lora_alpha=2, target_modules=("q_proj", "v_proj", "not_in_the_base"))
    adapter, base = {Q0: LoraShape(2, 8, 8)}, {Q0: (8, 8), V0: (4, 8)}
    assert check_fit(adapter, layers_of(base), RANK_2) == {Q0: Q0}
    check_fit(adapter, layers_of({Q0: (8, 8)}), settings, targets=True)
    with pytest.raises(AdapterInvalidError, match=f"'{V0}' is missing"):
        check_fit(adapter, layers_of(base), settings, targets=True)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern"])
@pytest.mark.parametrize("expression", ["(a|a)" * 25 + "b", "(.*.*)*x", "("])
def test_expressions_that_could_take_for_ever_are_not_matched(field: str, expression: str) -> None:
    settings = LoraSettings.model_validate(
        {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [0], field: expression}
    )
    long = f"model.layers.0.{'a' * 100}.q_proj"
    check_fit({Q0: LoraShape(2, 8, 8)}, layers_of({Q0: (8, 8), long: (8, 8)}), settings, targets=True)


_NAMES = st.text("ab.", max_size=6)


@given(
    layers=st.lists(_NAMES, max_size=5, unique=True),
    targets=st.lists(_NAMES, max_size=4, unique=True),
    excluded=st.none() | st.lists(_NAMES, min_size=1, max_size=3),
)
def test_lists_of_names_ask_for_the_layers_that_peft_takes(
    layers: list[str], targets: list[str], excluded: list[str] | None
) -> None:
    settings = LoraSettings(r=2, target_modules=tuple(targets), exclude_modules=excluded and tuple(excluded))
    taken = [name for name in layers if tuners_utils.check_target_module_exists(settings, name)]
    shapes = dict.fromkeys(layers, (8, 8))
    adapter = dict.fromkeys(taken, LoraShape(2, 8, 8))
    assert check_fit(adapter, layers_of(shapes), settings, targets=True).keys() == adapter.keys()
    if taken:
        del adapter[taken[0]]
        with pytest.raises(AdapterInvalidError, match="asks for 1 layers"):
            check_fit(adapter, layers_of(shapes), settings, targets=True)


LIST_LENGTH = 20_000


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": [f"x{n}.q_proj" for n in range(LIST_LENGTH)]},
        {"target_modules": ["q_proj"], "exclude_modules": ["q_proj", *map(str, range(LIST_LENGTH))]},
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": [0],
            "layers_pattern": [f"x{n}" for n in range(LIST_LENGTH)],
        },
    ],
    ids=["targets", "excluded", "patterns of layers"],
)
def test_long_lists_are_not_matched_one_by_one(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from downloads; PEFT tries each of them on each layer."""
    seen: list[int] = []
    rule = tuners_utils.check_target_module_exists

    def counted(config: Any, name: str) -> Any:
        lists = (config.target_modules, config.exclude_modules, config.layers_pattern)
        seen.append(max(len(one or ()) for one in lists))
        return rule(config, name)

    monkeypatch.setattr(tuners_utils, "check_target_module_exists", counted)
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(20)]
    asked = LoraSettings.model_validate({"r": 2, **settings})
    check_fit({names[0]: LoraShape(2, 8, 8)}, layers_of(dict.fromkeys(names, (8, 8))), asked, targets=True)
    assert max(seen, default=0) < 100


def test_a_file_of_the_base_that_cannot_be_read(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    folder = make_adapter(tmp_path / "a", base, target_modules=["lm_head"])
    (base / "model.safetensors").unlink()
    for index in (None, "{", "{}", '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "b.safetensors"}}'):
        if index:
            (base / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ConfigError, match="is not a base that can be read"):
            check_against_base(inspect_adapter(folder), folder, base)


# Copies of the base's weights


def with_tensors(folder: Path, out: Path, tensors: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(folder, out)
    weights = out / "adapter_model.safetensors"
    save_file({**load_file(weights), **tensors}, weights)
    return out


def fits(folder: Path, base: Path) -> bool:
    try:
        check_against_base(inspect_adapter(folder), folder, base)
        return True
    except AdapterIncompatibleError as error:
        return "a weight of the base itself" not in error.message


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def family(request, tmp_path_factory) -> Path:
    """An untied output layer, a tied one, and one in files with other names."""
    return make_base(tmp_path_factory.mktemp("bases") / request.param, request.param)


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_weights_of_the_base_that_peft_saves_are_accepted(family: Path, tmp_path: Path, bias: str) -> None:
    targets = ["lm_head", "c_attn" if family.name == "gpt2" else "q_proj"]
    folder = make_adapter(tmp_path / "a", family, target_modules=targets, bias=bias)
    weights = load_file(folder / "adapter_model.safetensors")
    copies = [name for name in weights if "lora_" not in name]
    assert "base_model.model.lm_head.base_layer.weight" in copies
    assert any(name.endswith(".bias") for name in copies) == (bias != "none" and family.name != "llama")
    assert fits(folder, family)
    for name in {copies[0], copies[-1]}:
        for row in (0, -1):
            changed = weights[name].clone()
            changed[row] += 1
            trained = with_tensors(folder, tmp_path / f"{name}{row}", {name: changed})
            assert not fits(trained, family), name
    longer = torch.cat([weights[copies[0]], weights[copies[0]][:1]])
    assert not fits(with_tensors(folder, tmp_path / "longer", {copies[0]: longer}), family)


def test_a_copy_may_have_the_dtype_of_its_training(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    folder = make_adapter(tmp_path / "a", base, target_modules=["lm_head"])
    name = "base_model.model.lm_head.base_layer.weight"
    copy = load_file(folder / "adapter_model.safetensors")[name]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert fits(with_tensors(folder, tmp_path / str(dtype), {name: copy.to(dtype)}), base)


def test_a_weight_that_the_base_does_not_have(tiny_base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", tiny_base)
    bias = {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias": torch.zeros(64)}
    assert not fits(with_tensors(folder, tmp_path / "b", bias), tiny_base)


def test_peft_itself_does_not_save_biases_that_a_base_lacks(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], bias="all", r=4)).save_pretrained(
        tmp_path / "a"
    )
    assert all("lora_" in name for name in load_file(tmp_path / "a/adapter_model.safetensors"))
    try:
        check_against_base(inspect_adapter(tmp_path / "a"), tmp_path / "a", tiny_base)
    except AdapterHubError as error:  # pragma: no cover
        pytest.fail(error.message)
