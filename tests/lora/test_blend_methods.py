"""Blend methods, against the weighted sum of the changes and against PEFT on whole models."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import Base, load_base
from adapterhub.errors import AdapterIncompatibleError, InvalidRequestError
from adapterhub.lora.blending.methods import BLEND_METHODS, BlendSettings, blend_deltas, compress
from adapterhub.lora.blending.sparse import dare_ties, ties
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import load_adapter_deltas, load_folder_deltas, read_deltas_without_base
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest
from benchmarks.blend import measure
from tests.tiny import ALL_LINEAR, ATTENTION, make_adapter, make_base

KINDS = ["llama", "mistral", "qwen2", "gpt2"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 50, 60], [60, 50, 10, 9, 8, 7, 6, 5]])
OUT, IN = 48, 40


def change(rank: int, seed: int, *, dora: bool = False) -> LoraDelta:
    random = torch.Generator().manual_seed(seed)
    scale = 0.7 + 0.6 * torch.rand(OUT, generator=random) if dora else None
    return LoraDelta(torch.randn(rank, IN, generator=random), torch.randn(OUT, rank, generator=random), scale)


def dense(delta: LoraDelta) -> torch.Tensor:
    return delta.b @ delta.a


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


MIXED = [(change(4, 1), 0.7), (change(16, 2), -0.4), (change(64, 3), 1.3)]
TOTAL = sum(weight * dense(delta) for delta, weight in MIXED)


class TestOneLayer:
    def test_concatenation_is_the_weighted_sum(self):
        blended = LoraDelta.weighted_sum(MIXED)
        assert blended.a.shape == (84, IN)
        assert relative(dense(blended), TOTAL) < 1e-6

    def test_svd_is_exact_at_full_rank_and_the_best_below(self):
        whole = LoraDelta.weighted_sum(MIXED)
        assert relative(dense(compress(whole, 84)), TOTAL) < 1e-6
        values = torch.linalg.svdvals(TOTAL.double())
        for rank in (1, 7, 30):
            cut = compress(whole, rank)
            assert len(cut.a) == cut.b.shape[1] == rank
            best = float(values[rank:].norm() / values.norm())
            assert relative(dense(cut), TOTAL) == pytest.approx(best, rel=1e-4)

    def test_svd_of_a_sum_of_low_rank_keeps_it(self):
        parts = [(change(3, 1), 0.5), (change(4, 2), 2.0)]
        wanted = sum(weight * dense(delta) for delta, weight in parts)
        assert relative(dense(compress(LoraDelta.weighted_sum(parts), 7)), wanted) < 1e-6

    @pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
    def test_ties_is_pefts_on_whole_changes(self, density):
        changes, weights = [dense(delta) for delta, _ in MIXED], [weight for _, weight in MIXED]
        if density < 1:
            wanted = merge_utils.ties(changes, torch.tensor(weights), density)
        else:  # PEFT warns there that nothing is pruned
            with pytest.warns(UserWarning, match="density"):
                wanted = merge_utils.ties(changes, torch.tensor(weights), density)
        assert torch.allclose(ties(changes, weights, density), wanted, atol=1e-5)

    def test_dare_ties_is_pefts_with_the_same_draws(self):
        changes, weights = [dense(delta) for delta, _ in MIXED], [weight for _, weight in MIXED]
        torch.manual_seed(5)
        wanted = merge_utils.dare_ties(changes, torch.tensor(weights), 0.4)
        found = dare_ties(changes, weights, 0.4, torch.Generator().manual_seed(5))
        assert torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(found, dare_ties(changes, weights, 0.4, torch.Generator().manual_seed(6)))

    @pytest.mark.parametrize("mixed", [True, False])
    def test_dora_is_summed_exactly_too(self, mixed):
        parts = [(change(4, 1, dora=True), 0.7), (change(8, 2, dora=not mixed), -0.3)]
        weight, x = torch.randn(OUT, IN), torch.randn(5, IN)

        def changed(delta: LoraDelta) -> torch.Tensor:
            adapted = x @ (weight + dense(delta)).T
            return adapted if delta.magnitude_scale is None else adapted * delta.magnitude_scale

        plain = x @ weight.T
        wanted = plain + sum(share * (changed(delta) - plain) for delta, share in parts)
        assert relative(changed(LoraDelta.weighted_sum(parts)), wanted) < 1e-6

    def test_magnitudes_that_cancel_the_base_are_refused(self):
        doubled = LoraDelta(torch.ones(1, IN), torch.ones(OUT, 1), torch.full((OUT,), 2.0))
        with pytest.raises(AdapterIncompatibleError, match="cancel"):
            LoraDelta.weighted_sum([(doubled, -1.0)])


class TestWholeAdapters:
    def test_a_layer_that_one_part_does_not_target(self):
        parts = [({"x": change(4, 1), "y": change(4, 2)}, 0.5), ({"x": change(8, 3)}, 2.0)]
        for method in BLEND_METHODS:
            settings = BlendSettings(method, density=0.5 if "ties" in method else None)
            assert blend_deltas(parts, settings).keys() == {"x", "y"}
        blended = blend_deltas(parts, BlendSettings())
        assert torch.allclose(dense(blended["y"]), 0.5 * dense(parts[0][0]["y"]))
        assert len(blended["x"].a) == 12

    @pytest.mark.parametrize("method", ["svd", "linear", "ties", "dare_ties"])
    def test_the_rank_is_the_highest_of_the_parts_or_the_one_given(self, method):
        parts = [({"x": change(4, 1)}, 0.5), ({"x": change(8, 3)}, 2.0)]
        density = 0.5 if "ties" in method else None
        for rank, wanted in [(None, 8), (5, 5), (1000, min(12, OUT) if density is None else IN)]:
            blended = blend_deltas(parts, BlendSettings(method, rank, density))["x"]
            assert (len(blended.a), blended.b.shape[1]) == (wanted, wanted)

    def test_ties_is_brought_to_a_rank_by_svd(self):
        parts = [({"x": change(4, 1)}, 0.5), ({"x": change(8, 3)}, 2.0)]
        wanted = ties([dense(deltas["x"]) for deltas, _ in parts], [0.5, 2.0], 0.3)
        whole = blend_deltas(parts, BlendSettings("ties", IN, 0.3))["x"]
        assert relative(dense(whole), wanted) < 1e-5
        u, s, vh = torch.linalg.svd(wanted)
        cut = blend_deltas(parts, BlendSettings("ties", 6, 0.3))["x"]
        assert relative(dense(cut), (u[:, :6] * s[:6]) @ vh[:6]) < 1e-4

    def test_dare_depends_on_the_seed_and_on_no_other_layer(self):
        first, second = {"x": change(4, 1), "y": change(4, 2)}, {"x": change(4, 3), "y": change(4, 4)}

        def blended(seed: int | None, *, alone: bool = False) -> torch.Tensor:
            parts = [({"y": d["y"]} if alone else d, 0.5) for d in (first, second)]
            return dense(blend_deltas(parts, BlendSettings("dare_ties", IN, 0.5, seed))["y"])

        assert torch.equal(blended(7), blended(7, alone=True))
        assert torch.equal(blended(None), blended(0))
        assert not torch.allclose(blended(7), blended(8))

    def test_linear_sums_changes_where_peft_sums_factors(self):
        parts = [({"x": change(8, 1)}, 0.5), ({"x": change(8, 2)}, 0.5)]
        wanted = sum(weight * dense(deltas["x"]) for deltas, weight in parts)
        assert relative(dense(blend_deltas(parts, BlendSettings("linear", 16))["x"]), wanted) < 1e-6

    def test_other_shapes_are_refused(self):
        wide = LoraDelta(torch.ones(2, IN + 1), torch.ones(OUT, 2))
        with pytest.raises(AdapterIncompatibleError, match="different shapes"):
            blend_deltas([({"x": change(2, 1)}, 1.0), ({"x": wide}, 1.0)], BlendSettings())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "mean"}, "no blend method"),
        ({"rank": 4}, "rank"),
        ({"method": "svd", "rank": 0}, "rank"),
        ({"method": "svd", "rank": 2.5}, "rank"),
        ({"method": "ties"}, "density"),
        ({"method": "ties", "density": 0}, "density"),
        ({"method": "ties", "density": float("nan")}, "density"),
        ({"method": "dare_ties", "density": 1.5}, "density"),
        ({"method": "svd", "density": 0.5}, "no density"),
        ({"method": "ties", "density": 0.5, "seed": 1}, "seed"),
        ({"method": "dare_ties", "density": 0.5, "seed": -1}, "seed"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(InvalidRequestError, match=words):
        BlendSettings(**settings)


# On whole models


@pytest.fixture(scope="module", params=KINDS)
def base_folder(request, tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "llama")


def request_of(folder: Path) -> StoredLoraRequest:
    return StoredLoraRequest(folder.name, f"sha256:{folder.name}", folder)


def logits(base: Base, request: LoraRequest) -> torch.Tensor:
    layers = LoraModelManager(base.model, slots=1, dtype=torch.float32)
    layers.load(0, load_adapter_deltas(request, base.model, base.linear_layers, dtype=torch.float32))
    with torch.inference_mode(), layers.using(LoraMapping([(0, IDS.numel())])):
        result: torch.Tensor = base.model(input_ids=IDS).logits
    return result


def pefts(base_folder: Path, adapters: dict[Path, float], combination: str, **arguments: object):
    """PEFT's logits of a weighted adapter."""
    plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    names = [f"a{number}" for number in range(len(adapters))]
    for name, folder in zip(names, adapters, strict=True):
        if name == "a0":
            model = PeftModel.from_pretrained(plain, folder, adapter_name=name)
        else:
            model.load_adapter(folder, name)
    weights = list(adapters.values())
    model.add_weighted_adapter(names, weights, "blend", combination_type=combination, **arguments)
    model.set_adapter("blend", inference_mode=True)
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def test_logits_equal_pefts_cat(base_folder: Path, tmp_path: Path):
    kind = base_folder.name
    pattern = {ATTENTION[kind][0]: 64}
    adapters = {
        make_adapter(tmp_path / "a", base_folder, seed=1, r=4): 0.7,
        make_adapter(
            tmp_path / "b", base_folder, seed=2, r=16, target_modules=ALL_LINEAR[kind], rank_pattern=pattern
        ): -0.3,
    }
    blend = BlendedLoraRequest.of(
        "blend", [(request_of(folder), weight) for folder, weight in adapters.items()]
    )
    base = load_base(base_folder, quantization=None, device="cpu")
    with torch.inference_mode():
        bare = base.model(input_ids=IDS).logits
    found = logits(base, blend)
    assert (found - bare).abs().max() > 0.5
    assert (found - pefts(base_folder, adapters, "cat")).abs().max() <= 1e-4


def test_pefts_cat_overscales_rslora_and_ours_does_not(llama: Path, tmp_path: Path):
    """peft 0.21.2 keeps `use_rslora` with alpha = r, so its sum comes out sqrt(r) times too large."""
    rank = 8
    settings = {"use_rslora": True, "r": rank // 2, "lora_alpha": 4, "std": 0.05}
    adapters = {make_adapter(tmp_path / f"a{n}", llama, seed=n, **settings): 0.5 for n in (1, 2)}
    base = load_base(llama, quantization=None, device="cpu")
    too_much = rank**0.5
    parts = [(request_of(folder), weight) for folder, weight in adapters.items()]
    over = BlendedLoraRequest.of("over", [(request, weight * too_much) for request, weight in parts])
    peft = pefts(llama, adapters, "cat")
    assert (logits(base, over) - peft).abs().max() <= 1e-4
    # The sum itself, written out: the same answer as from one adapter that holds it.
    deltas = [
        (load_folder_deltas(f, base.model, base.linear_layers, dtype=torch.float32), w)
        for f, w in adapters.items()
    ]
    blended = load_adapter_deltas(
        BlendedLoraRequest.of("right", parts), base.model, base.linear_layers, dtype=torch.float32
    )
    for module, delta in blended.items():
        wanted = sum(weight * dense(one[module]) for one, weight in deltas)
        assert (dense(delta) - wanted).abs().max() <= 1e-5


def test_logits_equal_pefts_svd_at_full_rank(llama: Path, tmp_path: Path):
    adapters = {make_adapter(tmp_path / f"a{n}", llama, seed=n, r=4): w for n, w in [(1, 0.6), (2, 0.4)]}
    parts = [(read_deltas_without_base(folder), weight) for folder, weight in adapters.items()]
    base = load_base(llama, quantization=None, device="cpu")
    layers = LoraModelManager(base.model, slots=1, dtype=torch.float32)
    layers.load(0, blend_deltas(parts, BlendSettings("svd", rank=8)))
    with torch.inference_mode(), layers.using(LoraMapping([(0, IDS.numel())])):
        found = base.model(input_ids=IDS).logits
    assert (found - pefts(llama, adapters, "svd", svd_rank=8)).abs().max() <= 1e-4


def test_a_blend_of_all_kinds_is_the_sum_in_every_layer(llama: Path, tmp_path: Path):
    """Ranks 4 to 64, rsLoRA, patterns, DoRA and different targets in one blend, layer by layer."""
    kinds = [
        {"r": 4},
        {"r": 64, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"r": 8, "rank_pattern": {"v_proj": 16}, "alpha_pattern": {"q_proj": 3}},
        {"r": 16, "use_dora": True, "target_modules": ALL_LINEAR["llama"]},
    ]
    folders = [make_adapter(tmp_path / f"a{n}", llama, seed=n, **kind) for n, kind in enumerate(kinds)]
    weights = [0.5, -0.2, 0.9, 0.3]
    base = load_base(llama, quantization=None, device="cpu")
    layers, model = base.linear_layers, base.model
    loaded = [load_folder_deltas(folder, model, layers, dtype=torch.float32) for folder in folders]
    blend = BlendedLoraRequest.of("b", zip(map(request_of, folders), weights, strict=True))
    blended = load_adapter_deltas(blend, model, layers, dtype=torch.float32)
    assert blended.keys() == set().union(*loaded)
    for module, delta in blended.items():
        layer = model.get_submodule(module)
        x = torch.randn(5, layers.shapes[module][1])

        def changed(delta: LoraDelta, layer=layer, x=x) -> torch.Tensor:
            adapted = layer(x) + x @ dense(delta).T  # llama's layers have no bias
            return adapted if delta.magnitude_scale is None else adapted * delta.magnitude_scale

        with torch.inference_mode():
            plain = layer(x)
            sums = [
                w * (changed(one[module]) - plain)
                for one, w in zip(loaded, weights, strict=True)
                if module in one
            ]
            assert (changed(delta) - plain - sum(sums)).abs().max() <= 1e-4


class TestLoading:
    PARTS = (
        (StoredLoraRequest("a", "sha256:a", Path("a")), 0.7),
        (StoredLoraRequest("b", "sha256:b", Path("b")), 0.3),
    )

    def test_the_digest_does_not_depend_on_the_order(self):
        digests = [
            BlendedLoraRequest.of("x", parts).digest
            for parts in (
                self.PARTS,
                self.PARTS[::-1],
                self.PARTS[:1],
                [(request, 0.5) for request, _ in self.PARTS],
                [(self.PARTS[0][0], 0.3), (self.PARTS[1][0], 0.7)],
            )
        ]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 4
        assert all(digest not in ("sha256:a", "sha256:b") for digest in digests)

    def test_the_digest_is_that_of_earlier_versions(self):
        digest = "11bfedc9c888d0bf243f19462455df2bc074370d8515d7b9229043c1d5ffd725"
        assert BlendedLoraRequest.of("x", self.PARTS).digest == f"sha256:{digest}"

    def test_the_sum_is_bit_for_bit_the_same_in_any_order(self, llama: Path, tmp_path: Path):
        folders = [make_adapter(tmp_path / f"a{n}", llama, seed=n) for n in (1, 2, 3)]
        parts = [(request_of(folder), 0.1 * n) for n, folder in enumerate(folders, 1)]
        base = load_base(llama, quantization=None, device="cpu")
        results = [
            load_adapter_deltas(
                BlendedLoraRequest.of("x", order), base.model, base.linear_layers, dtype=torch.float32
            )
            for order in (parts, parts[::-1])
        ]
        for one, other in pairwise(results):
            assert all(torch.equal(one[m].a, other[m].a) and torch.equal(one[m].b, other[m].b) for m in one)

    def test_a_part_that_cannot_be_loaded_is_named(self, llama: Path, tmp_path: Path):
        good = make_adapter(tmp_path / "good", llama)
        bad = make_adapter(tmp_path / "bad", make_base(tmp_path / "wide", hidden_size=128))
        base = load_base(llama, quantization=None, device="cpu")
        blend = BlendedLoraRequest.of("x", [(request_of(good), 0.5), (request_of(bad), 0.5)])
        with pytest.raises(AdapterIncompatibleError, match="part bad"):
            load_adapter_deltas(blend, base.model, base.linear_layers, dtype=torch.float32)

    def test_deltas_without_a_base_are_the_same(self, llama: Path, tmp_path: Path):
        folder = make_adapter(tmp_path / "a", llama, use_rslora=True, alpha_pattern={"q_proj": 3})
        base = load_base(llama, quantization=None, device="cpu")
        loaded = load_folder_deltas(folder, base.model, base.linear_layers, dtype=torch.float32)
        read = read_deltas_without_base(folder)
        assert read.keys() == loaded.keys()
        assert all(torch.equal(read[m].b, loaded[m].b) and torch.equal(read[m].a, loaded[m].a) for m in read)
        dora = make_adapter(tmp_path / "dora", llama, use_dora=True)
        with pytest.raises(AdapterIncompatibleError, match="DoRA"):
            read_deltas_without_base(dora)


def test_how_far_pefts_blends_are_from_the_sum():
    """The figures of docs/blend.md, on a smaller layer."""
    size, rank = 128, 4
    plain, rslora = (measure(size, rank, rslora=rslora) for rslora in (False, True))
    for found in (plain, rslora):
        assert found["cat"]["error"] < 1e-6
        assert found[f"svd, rank {2 * rank}"]["error"] < 1e-6
        assert 0.3 < found[f"linear, rank {rank}"]["error"] < 0.7
    assert plain["PEFT cat"]["error"] < 1e-6
    assert plain[f"PEFT linear, rank {rank}"]["error"] == pytest.approx(1, abs=0.15)
    assert rslora["PEFT cat"]["error"] == pytest.approx((2 * rank) ** 0.5 - 1, rel=1e-3)
    assert rslora[f"PEFT svd, rank {2 * rank}"]["error"] == pytest.approx((2 * rank) ** 0.5 - 1, rel=1e-3)
