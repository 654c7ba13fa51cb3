"""Fusion: its algebra, its weights against loops, and its refusals."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.core.merge import METHODS, Merge
from codiemb_lib.core.words import layer_of
from codiemb_lib.fuse import methods, moves
from codiemb_lib.fuse.delta import delta_guided_weights, delta_norms
from codiemb_lib.fuse.merging import merge, merge_weights
from codiemb_lib.fuse.tensors import FusionError
from tests.made_up import shown

GRANULARITIES = ("model", "layer", "tensor", "row", "element")

SHAPES = {
    "embeddings.word_embeddings.weight": (5, 3),
    "encoder.layer.0.dense.weight": (3, 3),
    "encoder.layer.0.dense.bias": (3,),
    "encoder.layer.1.dense.weight": (3, 3),
    "pooler.scale": (),
}


def make_model(seed, base=None, size=1.0, dtype=torch.float64):
    """A random model, or a random walk of step `size` away from `base`."""
    generator = torch.Generator().manual_seed(seed)
    model = {
        name: size * torch.randn(shape, generator=generator, dtype=dtype)
        for name, shape in SHAPES.items()
    }
    return model if base is None else {name: base[name] + model[name] for name in SHAPES}


BASE = make_model(0)
CHECKPOINTS = [make_model(j, BASE, size=0.1 * j) for j in (1, 2, 3)]
DELTA_OPTIONS = [
    {"granularity": granularity, "weighting": weighting, option: value}
    for granularity in GRANULARITIES
    for weighting, option, values in (
        ("power", "power", (-1.0, 0.0, 1.0, 2.0)),
        ("softmax", "temperature", (-0.5, 1.0)),
    )
    for value in values
]


def score_of(model):
    """Made up: how near a model is to a point beside the checkpoints."""
    return -sum(
        (model[name] - CHECKPOINTS[0][name] - 0.02).square().sum().item() for name in SHAPES
    )


# What is asked of every method, and which methods rightly differ: a laid-down order of the models
# (weights, random numbers, the ends of an arc), sums instead of means, entries left out.
EVERY_METHOD = [
    *DELTA_OPTIONS,
    {"method": "uniform"},
    {"method": "linear", "weights": [1, 2, 3]},
    {"method": "greedy", "score": score_of},
    {"method": "learned", "gradient": lambda model: {}},
    {"method": "task_arithmetic"},
    {"method": "task_arithmetic", "weights": [0.5, 0.25, 1]},
    {"method": "ties"},
    {"method": "ties", "density": 1.0, "weights": [1, 2, 3]},
    {"method": "dare", "density": 0.5},
    {"method": "slerp", "t": 0.3},
    {"method": "model_stock"},
]
_LISTED = {options.get("method", "delta") for options in EVERY_METHOD}
EVERY_METHOD += [{"method": method} for method in METHODS if method not in _LISTED]
DIFFERS = {
    "permuted": {"dare", "slerp"},
    "alone": {"dare", "slerp", "model_stock", "ties trimmed"},
    "equal": {"dare", "task_arithmetic", "ties trimmed"},
}


def name_of(options):
    trimmed = " trimmed" if options.get("method") == "ties" and "density" not in options else ""
    return options.get("method", "delta") + trimmed


def every_method(but=None):
    chosen = [o for o in EVERY_METHOD if name_of(o) not in DIFFERS.get(but, ())]
    return pytest.mark.parametrize("options", chosen, ids=shown)


def fuse_some(checkpoints, options, **more):
    """Fuse as many checkpoints as a method takes."""
    count = 2 if options.get("method") == "slerp" else len(checkpoints)
    options = options | more
    if "weights" in options:
        options = options | {"weights": options["weights"][:count]}
    return merge(BASE, checkpoints[:count], **options)


def assert_equal_models(actual, expected, **tolerance):
    assert list(actual) == list(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **tolerance)


# Weights


def by_power(power):
    return {"power": power}, lambda moved: [length**power for length in moved]


def by_softmax(temperature):
    def slow(moved):
        mean = sum(moved) / len(moved)
        return [math.exp(length / (mean * temperature)) for length in moved]

    return {"weighting": "softmax", "temperature": temperature}, slow


@pytest.mark.parametrize(
    ("options", "slow"), [*map(by_power, (-1.0, 0.5, 1.0, 2.0)), by_softmax(0.5)], ids=shown
)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_follow_how_far_each_model_moved(granularity, options, slow):
    group = {"model": lambda name: "all", "layer": layer_of}.get(granularity, lambda name: name)
    weights = delta_guided_weights(BASE, CHECKPOINTS, granularity=granularity, **options)
    assert [*weights] == [*SHAPES]
    for name, found in weights.items():
        together = [other for other in SHAPES if group(other) == group(name)]
        moved = torch.stack(
            [torch.cat([(c[n] - BASE[n]).view(-1) for n in together]) for c in CHECKPOINTS]
        )  # (J, numbers)
        if granularity == "element":
            columns = zip(*moved.abs().tolist(), strict=True)
        elif granularity == "row":
            rows = moved.view(3, -1, SHAPES[name][-1] if SHAPES[name] else 1).norm(dim=2)
            columns = zip(
                *rows.repeat_interleave(found[0].numel() // rows.shape[1], 1).tolist(), strict=True
            )
        else:
            columns = [moved.norm(dim=1).tolist()]
        shares = [[share / sum(slow(c)) for share in slow(c)] for c in columns]
        assert found.reshape(3, -1).T.tolist() == [pytest.approx(share) for share in shares]


@settings(max_examples=60, deadline=None)
@given(
    granularity=st.sampled_from(GRANULARITIES),
    weighting=st.sampled_from(["power", "softmax"]),
    power=st.floats(-30, 30),
    temperature=st.floats(-10, 10).filter(bool),
    sizes=st.lists(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 1e4]), min_size=1, max_size=4),
)
def test_weights_are_proportions_whatever_the_options(sizes, **options):
    checkpoints = [make_model(j, BASE, size=size) for j, size in enumerate(sizes)]
    for weights in delta_guided_weights(BASE, checkpoints, **options).values():
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=0), torch.ones_like(weights[0]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("power", "still"), [(-1.0, 0.5), (0.0, 0.25), (1.0, 0.0)])
def test_who_did_not_move_takes_all_under_a_negative_power_only(granularity, power, still):
    models = [CHECKPOINTS[0], BASE, CHECKPOINTS[1], BASE]
    found = delta_guided_weights(BASE, models, granularity=granularity, power=power)
    assert all((weights[[1, 3]] == still).all() for weights in found.values())
    found = delta_guided_weights(BASE, [BASE, BASE], granularity=granularity, power=power)
    assert all((weights == 0.5).all() for weights in found.values())


def test_layer_of():
    names = {
        "model.embed_tokens.weight": -1,
        "roberta.embeddings.LayerNorm.weight": -1,
        "wte.weight": -1,
        "encoder.layer.11.attention.self.query.weight": 11,
        "model.layers.3.self_attn.q_proj.weight": 3,
        "h.2.attn.c_proj.weight": 2,
        "0.auto_model.encoder.layer.4.output.dense.bias": 4,
        "pooler.dense.weight": None,
        "2_Dense/linear.weight": None,
    }
    assert {name: layer_of(name) for name in names} == names


# Algebra of merging


@settings(max_examples=100, deadline=None)
@given(
    options=st.sampled_from([o for o in EVERY_METHOD if name_of(o) not in DIFFERS["permuted"]]),
    sizes=st.lists(st.sampled_from([0.0, 1e-3, 0.1, 3.0]), min_size=2, max_size=4),
    data=st.data(),
)
def test_order_of_ingredients_does_not_matter(options, sizes, data):
    count = len(sizes)
    models = [make_model(j, BASE, size=size) for j, size in enumerate(sizes)]
    order = data.draw(st.permutations(range(count)))
    turned = dict(options)
    if "weights" in options:  # they go with their models
        options = options | {"weights": [*options["weights"], 1.5][:count]}
        turned["weights"] = [options["weights"][j] for j in order]
    expected = merge(BASE, models, **options)
    assert_equal_models(merge(BASE, [models[j] for j in order], **turned), expected)


@settings(max_examples=100, deadline=None)
@given(options=st.sampled_from(DELTA_OPTIONS), seeds=st.lists(st.integers(1, 9), max_size=4))
def test_a_mean_of_deltas_lies_among_its_ingredients(options, seeds):
    models = [make_model(seed, BASE) for seed in (1, *seeds)]
    merged = merge(BASE, models, **options)
    for name in SHAPES:
        values = torch.stack([model[name] for model in models])
        assert (merged[name] >= values.amin(dim=0) - 1e-9).all()
        assert (merged[name] <= values.amax(dim=0) + 1e-9).all()


@every_method(but="alone")
def test_one_ingredient_is_itself(options):
    if "weights" in options:
        options = options | {"weights": [1.0]}
    assert_equal_models(merge(BASE, CHECKPOINTS[:1], **options), CHECKPOINTS[0])


@every_method(but="equal")
def test_equal_ingredients_are_themselves(options):
    assert_equal_models(fuse_some(CHECKPOINTS[:1] * 3, options), CHECKPOINTS[0])


@every_method()
def test_zero_deltas_and_scale_zero_are_the_base(options):
    assert_equal_models(fuse_some([BASE] * 3, options), BASE)
    exactly = {"rtol": 0, "atol": 0}
    assert_equal_models(fuse_some(CHECKPOINTS, options, scale=0.0), BASE, **exactly)


@every_method()
def test_scale_is_the_length_of_the_merged_delta(options):
    whole = fuse_some(CHECKPOINTS, options)
    half = fuse_some(CHECKPOINTS, options, scale=0.5)
    assert_equal_models(half, {name: (BASE[name] + whole[name]) / 2 for name in SHAPES})


@every_method()
def test_kept_tensors_are_taken_as_they_are(options):
    keep = {"embeddings.*": "base", "*.layer.1.*": 1, "encoder.*.weight": 0}
    merged = fuse_some(CHECKPOINTS, options, keep=keep, scale=0.5)
    exactly = {"rtol": 0, "atol": 0}
    for name, source in {
        "embeddings.word_embeddings.weight": BASE,
        "encoder.layer.0.dense.weight": CHECKPOINTS[0],
        "encoder.layer.1.dense.weight": CHECKPOINTS[1],  # the first pattern that fits
    }.items():
        torch.testing.assert_close(merged[name], source[name], **exactly)
    others = ["encoder.layer.0.dense.bias", "pooler.scale"]
    if options.get("method") != "greedy":  # whose score sees the whole model
        small_base, *small = ({name: m[name] for name in others} for m in (BASE, *CHECKPOINTS))
        count = 2 if options.get("method") == "slerp" else 3
        expected = merge(small_base, small[:count], scale=0.5, **options)
        assert_equal_models({name: merged[name] for name in others}, expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("options", [{"power": 0}, {"weighting": "softmax", "temperature": -1e9}])
def test_power_zero_and_a_hot_softmax_are_the_soup(granularity, options):
    soup = merge(BASE, CHECKPOINTS, method="uniform")
    assert_equal_models(soup, {n: sum(c[n] for c in CHECKPOINTS) / 3 for n in SHAPES})
    assert_equal_models(merge(BASE, CHECKPOINTS, granularity=granularity, **options), soup)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_merge_is_base_plus_scaled_weighted_deltas(granularity):
    weights = delta_guided_weights(BASE, CHECKPOINTS, granularity=granularity, power=2.0)
    expected = {
        name: BASE[name]
        + 0.7
        * sum(w * (c[name] - BASE[name]) for w, c in zip(weights[name], CHECKPOINTS, strict=True))
        for name in SHAPES
    }
    options = {"granularity": granularity, "power": 2.0, "scale": 0.7}
    assert_equal_models(merge(BASE, CHECKPOINTS, **options), expected)


def test_the_table_of_methods_says_what_their_functions_take():
    for name, method in METHODS.items():
        parameters = inspect.signature(getattr(methods, name)).parameters.values()
        options = {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
        needed = {option for option in ("score", "gradient") if options.pop(option, False)}
        assert needed == {*filter(None, [method.needs])}
        assert method.options == (*options,)
        assert method.required == tuple(name for name, required in options.items() if required)
    taken = [name for name, f in vars(methods).items() if "Source:" in (inspect.getdoc(f) or "")]
    assert {*taken} == {*METHODS}


# Each method against its paper, in loops over numbers


def slow_ties(base, values, density, weights):
    """Trim, elect, disjoint mean: arXiv 2306.01708, algorithm 1, for one tensor as a list."""
    trimmed = []
    for row in values:
        deltas = [value - start for value, start in zip(row, base, strict=True)]
        count = max(1, int(density * len(deltas)))
        least = sorted(map(abs, deltas), reverse=True)[count - 1]
        trimmed.append([d if abs(d) >= least else 0.0 for d in deltas])
    merged = []
    for start, column in zip(base, zip(*trimmed, strict=True), strict=True):
        elected = sum(w * d for w, d in zip(weights, column, strict=True))
        agree = [(w, d) for w, d in zip(weights, column, strict=True) if d * elected > 0]
        total = sum(w for w, _ in agree)
        merged.append(start + (sum(w * d for w, d in agree) / total if total else 0.0))
    return merged


def slow_slerp(first, second, t):
    cosine = sum(a * b for a, b in zip(first, second, strict=True))
    cosine /= math.hypot(*first) * math.hypot(*second)
    if abs(cosine) > 0.9995:
        return [(1 - t) * a + t * b for a, b in zip(first, second, strict=True)]
    angle = math.acos(cosine)
    left, right = math.sin((1 - t) * angle), math.sin(t * angle)
    return [(left * a + right * b) / math.sin(angle) for a, b in zip(first, second, strict=True)]


def slow_model_stock(base, values):
    """arXiv 2403.19522: the ratio t from the mean angle between the models, seen from the base."""
    deltas = [[v - start for v, start in zip(row, base, strict=True)] for row in values]
    count, cosines = len(values), []
    for i in range(count):
        for j in range(i):
            product = sum(a * b for a, b in zip(deltas[i], deltas[j], strict=True))
            cosines.append(product / (math.hypot(*deltas[i]) * math.hypot(*deltas[j])))
    cosine = sum(cosines) / len(cosines)
    t = count * cosine / ((count - 1) * cosine + 1)
    means = [sum(column) / count for column in zip(*values, strict=True)]
    return [t * mean + (1 - t) * start for mean, start in zip(means, base, strict=True)]


@pytest.fixture(params=[4, 1 << 17], ids=["many blocks", "one block"])
def blocks(request, monkeypatch):
    """Tensors are gone through in one block, or in several."""
    monkeypatch.setattr(moves, "BLOCK", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("options", "slow"),
    [
        ({"method": "ties"}, lambda b, v: slow_ties(b, v, 0.2, [1, 1, 1])),
        ({"method": "ties", "density": 0.7}, lambda b, v: slow_ties(b, v, 0.7, [1, 1, 1])),
        (
            {"method": "ties", "density": 1.0, "weights": [0, 2, 0.5]},
            lambda b, v: slow_ties(b, v, 1.0, [0, 2, 0.5]),
        ),
        ({"method": "model_stock"}, slow_model_stock),
        (
            {"method": "linear", "weights": [3, -1, 2]},
            lambda b, v: [(3 * x - y + 2 * z) / 4 for x, y, z in zip(*v, strict=True)],
        ),
        (
            {"method": "task_arithmetic", "weights": [3, -1, 2]},
            lambda b, v: [
                s + 3 * (x - s) - (y - s) + 2 * (z - s) for s, x, y, z in zip(b, *v, strict=True)
            ],
        ),
        ({"method": "slerp", "t": 0.3}, lambda b, v: slow_slerp(v[0], v[1], 0.3)),
    ],
    ids=shown,
)
@pytest.mark.parametrize("size", [0.1, 3.0])
def test_methods_are_what_their_papers_say(options, slow, size):
    checkpoints = [make_model(j, BASE, size=size) for j in (1, 2, 3)]
    checkpoints = checkpoints[: 2 if options["method"] == "slerp" else 3]
    merged = merge(BASE, checkpoints, **options)
    for name, shape in SHAPES.items():
        values = [checkpoint[name].reshape(-1).tolist() for checkpoint in checkpoints]
        expected = torch.tensor(slow(BASE[name].reshape(-1).tolist(), values), dtype=torch.float64)
        torch.testing.assert_close(merged[name], expected.view(shape))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_blocks_change_no_weight(granularity, monkeypatch):
    options = {"granularity": granularity, "weighting": "softmax"}
    actual = delta_guided_weights(BASE, CHECKPOINTS, **options)
    monkeypatch.setattr(moves, "BLOCK", 1 << 20)
    assert_equal_models(actual, delta_guided_weights(BASE, CHECKPOINTS, **options))


def test_ties_keeps_all_that_equal_the_last_kept_and_elects_no_sign_from_a_draw():
    base = {"x": torch.zeros(6)}
    models = [
        {"x": torch.tensor([1.0, -1, 1, 0, 0, 0])},
        {"x": torch.tensor([1.0, 1, -2, 0, 0, 0])},
    ]
    merged = merge(base, models, method="ties", density=2 / 6)["x"]
    assert merged.tolist() == [1, 0, -2, 0, 0, 0]
    delta = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    base, models = {"x": torch.zeros(1000)}, [{"x": delta}, {"x": -delta}]
    for weights in ([1, 1], [0.3, 0.3], [1 / 3, 1 / 3]):
        drawn = merge(base, models, method="ties", density=1.0, weights=weights)["x"]
        assert not drawn.any()  # w d - w d is zero, however it is rounded


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=shown)
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(1003, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1003),
        torch.ones(1003),
        torch.arange(1003) % 3 - 1,
        torch.arange(1003.0) * (torch.arange(1003) % 10 == 0),  # mostly zeros
        torch.arange(1003.0) * (torch.arange(1003) % 5 == 0),  # what the sample sees is unlike all
        torch.arange(1003.0) * (torch.arange(1003) % 5 != 0),
        torch.tensor([-2.0]),
    ],
    ids=["normal", "zeros", "ones", "three", "few", "sampled", "unsampled", "one"],
)
def test_the_kth_largest_magnitude_is_exact_whatever_a_sample_says(values, dtype, monkeypatch):
    monkeypatch.setattr(methods, "_SAMPLE", 200)  # every fifth number
    values = values.to(dtype)
    moved = moves.Moves("x", {"x": torch.zeros_like(values)}, [{"x": values}])
    ranked = values.abs().sort(descending=True).values
    for k in {1, 2, len(values) // 5, len(values) // 2, len(values) - 1, len(values)} - {0}:
        if k <= len(values):
            assert methods._kth_largest(moved, k) == ranked[k - 1]


@pytest.mark.usefixtures("blocks")
def test_dare_drops_at_random_without_bias():
    base = {name: torch.zeros(1000, dtype=torch.float64) for name in "ab"}
    models = [{name: torch.full((1000,), v, dtype=torch.float64) for name in "ab"} for v in (1, 3)]
    runs = [merge(base, models, method="dare", density=0.25, seed=seed) for seed in range(40)]
    assert {*runs[0]["a"].tolist()} == {0, 2, 6, 8}  # none, one, the other, both of 4 v / 2
    assert not torch.equal(runs[0]["a"], runs[0]["b"])
    assert not torch.equal(runs[0]["a"], runs[1]["a"])
    lazy = methods.dare(base, models, density=0.25, seed=0)
    assert torch.equal(lazy["b"], runs[0]["b"])  # whatever is read first
    every = torch.cat([run["a"] for run in runs])
    deviation = math.sqrt((1 + 9) / 4 * 0.75 / 0.25)  # of the mean of two scaled Bernoulli numbers
    assert every.mean().item() == pytest.approx(2, abs=4 * deviation / math.sqrt(len(every)))


def test_slerp_of_two_directions_keeps_the_length_and_halves_the_angle():
    models = [{"x": torch.tensor([1.0, 0.0])}, {"x": torch.tensor([0.0, 1.0])}]
    base = {"x": torch.zeros(2)}
    assert merge(base, models, method="slerp")["x"].tolist() == pytest.approx([0.5**0.5] * 2)
    assert merge(base, models, method="slerp", t=0.0)["x"].tolist() == pytest.approx([1, 0])
    nearly = [models[0], {"x": torch.tensor([2.0, 0.001])}]
    assert merge(base, nearly, method="slerp")["x"].tolist() == pytest.approx([1.5, 0.0005])


def test_model_stock_where_no_angle_is_defined():
    base = {"x": torch.zeros(2)}
    opposite = [{"x": torch.tensor([1.0, 0.0])}, {"x": torch.tensor([-1.0, 0.0])}]
    assert merge(base, opposite, method="model_stock")["x"].tolist() == [0, 0]
    one_still = [base, opposite[0]]
    assert merge(base, one_still, method="model_stock")["x"].tolist() == [0, 0]
    equal = [opposite[0]] * 2
    assert merge(base, equal, method="model_stock")["x"].tolist() == [1, 0]
    near = merge(base, [{"x": m["x"] * 1e-4} for m in equal], method="model_stock", floor=1e-6)
    assert 0 < near["x"][0] < 0.1e-4  # as mergekit has it


def test_greedy_soup_keeps_whom_it_is_not_worse_for():
    models = [{"x": torch.tensor([v])} for v in (4.0, 1.0, -8.0, -2.0)]
    seen = []

    def score(model):
        seen.append(model["x"].item())
        return -abs(model["x"].item())

    soup = methods.greedy({"x": torch.zeros(1)}, models, score=score)
    assert seen[:4] == [4, 1, -8, -2]
    assert seen[4:] == [-0.5, 1, -3]  # 1 and -2; with 4 worse; so with -8
    assert soup.kept == [1, 3]
    assert soup["x"].item() == -0.5
    with pytest.raises(FusionError, match="score: expected a number for every model, found NaN"):
        merge(BASE, CHECKPOINTS, method="greedy", score=lambda model: math.nan)
    for options in ({"method": "greedy"}, {"method": "uniform", "score": score}):
        with pytest.raises(FusionError, match=r"expected a `score` with 'greedy'"):
            merge(BASE, CHECKPOINTS, **options)


# Types and values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    # In half precision the mean of these would lose the small deltas on the way.
    base = {"w": torch.zeros(1, dtype=dtype)}
    values = [1024.0, *[1.0] * 15]
    merged = merge(
        base, [{"w": torch.full((1,), v, dtype=dtype)} for v in values], method="uniform"
    )
    assert merged["w"].dtype == dtype
    assert merged["w"] == torch.tensor([sum(values) / 16]).to(dtype)


def test_numbers_that_their_type_does_not_hold_are_refused():
    base = {"w": torch.zeros(2, dtype=torch.float16)}
    runs = [{"w": torch.full((2,), 40_000.0, dtype=torch.float16)}] * 2
    assert merge(base, runs, method="uniform")["w"].tolist() == [40_000.0, 40_000.0]
    with pytest.raises(FusionError, match=r"w: .*float16 holds, found up to 8e\+04"):
        merge(base, runs, method="task_arithmetic")


@pytest.mark.parametrize(
    "options", [{"keep": {"*": "base"}}, {"scale": 0.5}, {"scale": 0}], ids=shown
)
def test_what_no_method_reads_must_be_finite_too(options):
    base = {"w": torch.tensor([1.0, math.nan])}
    with pytest.raises(FusionError, match="w: expected finite weights"):
        merge(base, [{"w": torch.ones(2)}], method="uniform", **options)


@pytest.mark.parametrize("method", ["slerp", "model_stock", "ties", "delta"])
def test_a_tensor_without_elements_is_merged(method):
    base = {"w": torch.ones(0, 3)}
    assert merge(base, [base, base], method=method)["w"].shape == (0, 3)


def test_integer_tensors_are_copied_and_must_be_equal():
    base, one, other = (
        model | {"positions": torch.arange(4)} for model in (BASE, *CHECKPOINTS[:2])
    )
    merged = merge(base, [one, other])
    assert merged["positions"].tolist() == [0, 1, 2, 3]
    assert "positions" not in delta_guided_weights(base, [one, other])
    other["positions"] = torch.arange(4).flip(0)
    with pytest.raises(ValueError, match=r"checkpoint 1: .* integers .* positions \(other"):
        merge(base, [one, other])


def test_ingredients_are_left_alone():
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in CHECKPOINTS]
    for tensor in merge(BASE, CHECKPOINTS, keep={"pooler*": 0}).values():
        tensor.zero_()
    for model, copy in zip(CHECKPOINTS, before, strict=True):
        assert_equal_models(model, copy, rtol=0, atol=0)


# Refusals


def test_other_names_and_shapes_are_listed():
    wrong = dict(CHECKPOINTS[0])
    del wrong["pooler.scale"]
    wrong["encoder.layer.0.dense.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"checkpoint 1: .* 2 that differ") as caught:
        merge(BASE, [CHECKPOINTS[0], wrong])
    assert "encoder.layer.0.dense.bias (floating [4] beside floating [3])" in str(caught.value)
    assert "pooler.scale (missing beside floating [])" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_values_that_are_not_finite_are_named(value, granularity):
    broken = {name: tensor.clone() for name, tensor in CHECKPOINTS[0].items()}
    broken["encoder.layer.1.dense.weight"][0, 0] = value
    with pytest.raises(ValueError, match=r"checkpoint 1: .* encoder\.layer\.1\.dense\.weight"):
        merge(BASE, [CHECKPOINTS[0], broken], granularity=granularity)
    with pytest.raises(ValueError, match=r"base: .* encoder\.layer\.1\.dense\.weight"):
        delta_norms(broken, CHECKPOINTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "unifrom"}, "unknown method 'unifrom'.*Did you mean 'uniform'"),
        ({"powr": 2.0}, "unknown key 'powr'.*Did you mean 'power'"),
        ({"method": "ties", "power": 2}, "unknown option of ties 'power'"),
        ({"granularity": "tensors"}, "granularity: .*'row' or 'element', found 'tensors'"),
        ({"power": math.nan}, "power: .*finite number"),
        ({"scale": np.array([1.0, 2.0])}, "scale: .*valid number"),
        ({"temperature": 0}, "temperature: expected .* other than zero"),
        ({"method": "ties", "density": 1.1}, "density: .*less than or equal to 1, found 1.1"),
        ({"method": "ties", "density": 0}, "density: .*greater than 0, found 0"),
        ({"method": "ties", "weights": [1, 1, -1]}, "expected none below zero"),
        ({"method": "ties", "weights": [0, 0, 0]}, "and one above, found"),
        ({"method": "ties", "weights": np.ones((3, 2))}, "weights.0: .*valid number"),
        ({"method": "linear", "weights": np.ones(2)}, "expected one for each of 3 models"),
        ({"method": "linear"}, "linear: expected the option 'weights'"),
        ({"method": "linear", "weights": [1, -1, 0]}, "expected a sum other than zero"),
        ({"method": "dare", "seed": 0.5}, "seed: .*valid integer"),
        ({"method": "slerp"}, "slerp: expected exactly 2 models, found 3"),
        (
            {"keep": {"*embedings*": "base"}},
            "fits none of .*'embeddings.word_embeddings.weight'",
        ),
        ({"keep": {"*": 3}}, "keep: unknown ingredient '3'"),
        ({"output": "somewhere"}, "or mappings and none, found output='somewhere'"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(FusionError, match=message):
        merge(BASE, CHECKPOINTS, **options)


def test_numbers_of_models_that_cannot_be_merged_are_refused():
    with pytest.raises(FusionError, match="model_stock: expected at least 2 models, found 1"):
        merge(BASE, CHECKPOINTS[:1], method="model_stock")
    with pytest.raises(FusionError, match=r"ingredients: .*at least 1 item"):
        merge(BASE, [])
    with pytest.raises(TypeError, match="found a single one"):
        merge(BASE, CHECKPOINTS[0])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "task_arithmetic", "weights": np.float32([0.5, 0.25, 0.25])},
        {"method": "dare", "seed": np.int64(3), "density": np.float64(0.5)},
        {"method": "delta", "power": np.float32(2), "scale": np.array(0.5)},
    ],
    ids=lambda options: options["method"],
)
def test_numbers_of_numpy_are_taken_as_those_of_python(options):
    plain = {n: v.tolist() if n != "method" else v for n, v in options.items()}
    expected = merge(BASE, CHECKPOINTS, **plain)
    assert_equal_models(merge(BASE, CHECKPOINTS, **options), expected, rtol=0, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_share_is_of_the_models_own_movement(granularity):
    """Twice as long a delta works in the same places."""
    longer = {name: BASE[name] + 5 * (CHECKPOINTS[0][name] - BASE[name]) for name in SHAPES}
    models = [longer, *CHECKPOINTS[1:]]
    options = {"granularity": granularity, "measure": "share", "power": 2.0}
    found, other = (delta_guided_weights(BASE, m, **options) for m in (CHECKPOINTS, models))
    totals = [sum(w[n].sub(BASE[n]).square().sum() for n in SHAPES).sqrt() for w in CHECKPOINTS]
    units = [
        {n: BASE[n] + (w[n] - BASE[n]) / total for n in SHAPES}
        for w, total in zip(CHECKPOINTS, totals, strict=True)
    ]
    plain = delta_guided_weights(BASE, units, granularity=granularity, power=2.0)
    for name in SHAPES:
        torch.testing.assert_close(other[name], found[name])
        torch.testing.assert_close(found[name], plain[name])


def slow_regmean(base, values):
    """Least squares over the rows of all deltas: each is both the inputs and what is asked of them.

    arXiv 2212.09849, equation 2: minimise the sum of |X_j W - X_j W_j|^2 with X_j' X_j = C_j.
    """
    deltas = [(value - base).numpy() for value in values]  # (outputs, inputs)
    inputs = np.concatenate(deltas)
    wanted = np.concatenate([delta @ delta.T for delta in deltas])
    return base + torch.from_numpy(np.linalg.lstsq(inputs, wanted, rcond=None)[0].T)


def test_regmean_is_least_squares_on_the_rows_of_the_deltas():
    found = merge(BASE, CHECKPOINTS, method="regmean")
    soup = merge(BASE, CHECKPOINTS, method="uniform")
    for name in SHAPES:
        if "layer" in name and name.endswith("weight"):
            expected = slow_regmean(BASE[name], [c[name] for c in CHECKPOINTS])
            assert (found[name] - soup[name]).norm() > 0.01
        else:
            expected = soup[name]
        torch.testing.assert_close(found[name], expected)


def slow_sce(base, values, density):
    """arXiv 2408.07990, section 3.3, for one tensor as a list."""
    deltas = [[v - b for v, b in zip(row, base, strict=True)] for row in values]
    spread = [float(np.var(column)) for column in zip(*deltas, strict=True)]
    kept = int(density * sum(x > 0 for x in spread)) if density < 1 else len(base)
    chosen = sorted(range(len(base)), key=lambda i: -spread[i])[:kept]
    deltas = [[d if i in chosen else 0.0 for i, d in enumerate(row)] for row in deltas]
    sizes = [sum(d * d for d in row) for row in deltas]
    weights = [size / sum(sizes) if sum(sizes) else 1 / len(sizes) for size in sizes]
    merged = []
    for start, column in zip(base, zip(*deltas, strict=True), strict=True):
        positive = sum(column) >= 0
        agree = [(w, d) for w, d in zip(weights, column, strict=True) if d and (d > 0) == positive]
        total = sum(w for w, _ in agree)
        merged.append(start + (sum(w * d for w, d in agree) / total if total else 0.0))
    return merged


@pytest.mark.parametrize("density", [0.3, 0.7, 1.0])
def test_sce_equals_its_loop(density):
    found = merge(BASE, CHECKPOINTS, method="sce", density=density)
    for name in SHAPES:
        rows = [c[name].flatten().tolist() for c in CHECKPOINTS]
        expected = slow_sce(BASE[name].flatten().tolist(), rows, density)
        assert found[name].flatten().tolist() == pytest.approx(expected, abs=1e-9)


def length(model, but=()):
    return sum((model[n] - BASE[n]).square().sum() for n in SHAPES if n not in but).sqrt().item()


@every_method()
def test_matched_lengths_are_the_soups(options):
    kept = "encoder.layer.1.dense.weight"
    more = {"keep": {kept: "base"}}
    count = 2 if options.get("method") == "slerp" else 3
    soup = merge(BASE, CHECKPOINTS[:count], method="uniform", **more)
    plain, found = (
        fuse_some(CHECKPOINTS, options, match_length=match, **more) for match in (False, True)
    )
    assert length(found) == pytest.approx(length(soup))
    twice = fuse_some(CHECKPOINTS, options, match_length=True, scale=1.7, **more)
    assert length(twice) == pytest.approx(1.7 * length(soup))
    ratio = length(soup) / length(plain)
    for name in SHAPES:
        torch.testing.assert_close(found[name], BASE[name] + ratio * (plain[name] - BASE[name]))
    still = fuse_some([BASE] * 3, options, match_length=True)
    assert_equal_models(still, BASE)


def test_depth_scales_from_the_first_layer_to_the_last():
    plain = merge(BASE, CHECKPOINTS, power=2.0)
    found = merge(BASE, CHECKPOINTS, power=2.0, depth=(0.2, 1.4), scale=0.5)
    factors = {"embeddings": 0.2, "encoder.layer.0": 0.2, "encoder.layer.1": 1.4, "pooler": 1.4}
    for name in SHAPES:
        factor = 0.5 * next(f for start, f in factors.items() if name.startswith(start))
        torch.testing.assert_close(found[name], BASE[name] + factor * (plain[name] - BASE[name]))


def test_the_base_as_an_ingredient_is_a_delta_of_zero(caplog):
    settings = Merge(ingredients=("base", "a"), method="linear", weights=(1, 3))
    found = merge_weights(BASE, {"a": CHECKPOINTS[0]}, settings)
    for name in SHAPES:
        torch.testing.assert_close(found[name], 0.25 * BASE[name] + 0.75 * CHECKPOINTS[0][name])
    assert not caplog.text


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_learned_coefficients_find_the_bottom_of_a_loss(granularity):
    wanted = {-1: (0.3, 0.9, 0.1), 0: (0.3, 0.9, 0.1), 1: (0.6, -0.2, 0.5), None: (0.3, 0.9, 0.1)}
    if granularity == "model":
        wanted = dict.fromkeys(wanted, (0.3, 0.9, 0.1))
    target = {}
    for n in SHAPES:
        parts = zip(wanted[layer_of(n)], CHECKPOINTS, strict=True)
        target[n] = BASE[n] + sum(c * (model[n] - BASE[n]) for c, model in parts)
    options = {"granularity": granularity, "steps": 1500, "rate": 0.02}
    gradient = lambda model: {n: model[n] - target[n] for n in SHAPES}  # noqa: E731
    settings = Merge(ingredients=("0", "1", "2"), method="learned", **options)
    runs = dict(zip("012", CHECKPOINTS, strict=True))
    assert_equal_models(merge_weights(BASE, runs, settings, gradient), target, rtol=0, atol=1e-3)


def test_learned_coefficients_start_at_the_soup():
    found = merge(BASE, CHECKPOINTS, method="learned", gradient=lambda model: {})
    assert_equal_models(found, merge(BASE, CHECKPOINTS, method="uniform"))
