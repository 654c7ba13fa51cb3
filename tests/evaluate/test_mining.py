"""Mined negatives, with encoders whose vectors are given, and with a tiny real one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.core import DatasetSettings, EncoderSettings, Preset
from codiemb_lib.data import Record, load_dataset, write_splits
from codiemb_lib.evaluate import EvaluationError, mine, with_mined
from codiemb_lib.model import Embedder


class ByAngle:
    """Encodes a text as a point of the unit circle: its last word in degrees, plus the prompt."""

    def __init__(self):
        self.calls = []

    def embed(self, texts, *, prompt="", progress=False):
        self.calls.append((list(texts), prompt))
        angles = np.radians([float(text.split()[-1]) + float(prompt or 0) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def ir(query, *positives, negatives=(), **fields):
    return Record("ir", query, positives, negatives, **fields)


def corpus(*degrees):
    return [f"passage at {angle}" for angle in degrees]


def mined(record, *rest, corpus=(), margin=0.0, **options):
    options |= {"corpus": corpus, "absolute_margin": margin}
    return list(mine(ByAngle(), [record, *rest], **options)[0].negatives)


def test_the_margin_is_kept_from_the_positive():
    positive, margin = math.cos(math.radians(20)), 0.1
    bound = math.degrees(math.acos(positive - margin))
    near, far = corpus(bound - 0.1, bound + 0.1)
    assert mined(ir("q 0", "p 20"), corpus=[near, far], margin=margin) == [far]
    assert mined(ir("q 0", "p 20"), corpus=[near, far], margin=0) == [near, far]


def test_the_query_is_no_negative_even_where_the_prompt_parts_it_from_itself():
    found = mined(
        ir("q 0", "p -40"),
        corpus=["q 0", *corpus(20)],
        settings=DatasetSettings(name="", passage_prompt="50"),
    )
    assert found == corpus(20)


def test_what_reads_like_an_answer_to_the_query_or_has_its_id_is_no_negative():
    """By any record of the query, whatever its case and blanks, at a margin of 0."""
    records = [ir("Q 0", "Paris. 20", same_id="a 40"), ir("q 0", "Rome 30")]
    texts = ["paris 20", "PARIS  20", "rome. 30", "Q: 0", "a 40", "Oslo 50"]
    expected = [("Oslo 50",), ("a 40", "Oslo 50")]
    for ignored in (True, False):  # the document of its id: as it is scored
        settings = DatasetSettings(name="", ignore_identical_ids=ignored)
        found = mine(ByAngle(), records, corpus=texts, settings=settings)
        assert [record.negatives for record in found] == [expected[not ignored], expected[1]]


def test_candidates_are_the_passages_of_all_records_and_of_the_corpus():
    record = ir("q 0", "p 5", negatives=("old 30",), negative_scores=(0.5,))
    other = ir("r 90", "p 80", negatives=("old 40", "old 50"))
    found = mine(ByAngle(), [record, other], corpus=["new 60"], absolute_margin=0, negatives=9)
    assert found[0].negatives == ("old 30", "old 40", "old 50", "new 60", "p 80")
    assert found[1].negatives == ("new 60", "old 50", "old 40", "old 30", "p 5")


def test_former_negatives_go_and_everything_else_stays():
    record = ir(
        "q 0",
        "p 5",
        "p 6",
        negatives=("old 30",),
        positive_scores=(0.9, 0.8),
        negative_scores=(0.5,),
        dataset="name",
        id="7",
    )
    (found,) = mine(ByAngle(), [record], corpus=corpus(20, 25), negatives=2)
    assert found == replace(record, negatives=tuple(corpus(20, 25)), negative_scores=())


def test_depth_counts_what_is_left_out_too():
    record = ir("q 0", "p 10")
    assert mined(record, corpus=corpus(5, 20, 30, 40), negatives=2, depth=3) == corpus(20)


def test_equal_similarities_stand_in_the_order_of_the_input():
    record = ir("q 0", "p 10", negatives=("d 40", "b 40"))
    assert mined(record, corpus=["c 40", "b 40", "a 40"]) == ["d 40", "b 40", "c 40", "a 40"]


def test_every_text_is_encoded_once_with_its_side_s_prompt():
    encoder = ByAngle()
    records = [ir("q 0", "p 10"), ir("q 0", "p 20"), ir("r 0", "p 10", negatives=("q 0",))]
    mine(
        encoder,
        records,
        corpus=["p 20"],
        settings=DatasetSettings(name="", query_prompt="5", passage_prompt="9"),
    )
    assert encoder.calls == [
        (["q 0", "r 0"], "5"),
        (["p 10", "p 20", "q 0"], "9"),
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([0.003, 0.05, 0.45]),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.integers(1, 5),
)
def test_against_every_candidate_looked_at_in_turn(drawn, margin, relative, negatives):
    records = [ir(f"{q * 15}", *(f"p {p * 6}" for p in ps)) for q, ps in drawn]
    texts = list(dict.fromkeys(p for record in records for p in record.positives))
    embed = ByAngle().embed

    def cosine(a, b):
        return (embed([a]) @ embed([b]).T).item()

    margins = {"absolute_margin": margin, "relative_margin": relative}
    found = mine(ByAngle(), records, **margins, negatives=negatives)
    for record, actual in zip(records, found, strict=True):
        least = min(cosine(record.query, p) for p in record.positives)
        ceiling = least * (1 - relative) - margin
        relevant = {p for other in records if other.query == record.query for p in other.positives}
        allowed = {
            t: cosine(record.query, t)
            for t in texts
            if t not in relevant and cosine(record.query, t) <= ceiling
        }
        hardest = sorted(allowed.values(), reverse=True)[:negatives]
        assert [allowed[t] for t in actual.negatives] == pytest.approx(hardest, abs=1e-6)


def test_a_real_encoder_twice(make_encoder, tmp_path):
    encoder = Embedder(EncoderSettings(name=str(make_encoder().save(tmp_path / "model"))))
    words = ["the old cat", "a fast car", "red bus", "blue dog", "the new car", "slow bus"]
    records = [ir(f"find {text}", text) for text in words]
    # A random encoder ranks its positives anywhere: the widest ceiling that margins allow is 0.
    first = mine(encoder, records, absolute_margin=0, negatives=2)
    assert first == mine(encoder, records, absolute_margin=0, negatives=2)
    assert any(record.negatives for record in first)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([ir("q 0", "p 1"), Record("sts", "a 0", ("b 0",), (), (0.5,))], {}, "'sts' in record 1"),
        ([ir("q 0", "p 1")], {"negatives": 0}, "found 0, 100, 0.0 and 0.0"),
        ([ir("q 0", "p 1")], {"depth": 3}, "found 4, 3,"),
        ([ir("q 0", "p 1")], {"absolute_margin": -0.1}, "-0.1 and"),
        ([ir("q 0", "p 1")], {"absolute_margin": 5}, "5 and"),
        ([ir("q 0", "p 1")], {"relative_margin": 1}, "and 1"),
    ],
)
def test_what_cannot_be_mined_is_refused_before_encoding(records, options, message):
    encoder = ByAngle()
    with pytest.raises(EvaluationError, match=message):
        mine(encoder, records, **options)
    assert not encoder.calls


def test_the_relative_margin_is_that_of_sentence_transformers():
    """What `mine_hard_negatives` calls so: a negative's similarity is at most (1 - margin) times
    the positive's."""
    positive = math.cos(math.radians(20))
    bound = math.degrees(math.acos(0.95 * positive))
    near, far = corpus(bound - 0.5, bound + 0.5)
    found = mine(ByAngle(), [ir("q 0", "p 20")], corpus=[near, far], relative_margin=0.05)
    assert list(found[0].negatives) == [far]


@pytest.fixture
def asked(make_encoder, tmp_path, monkeypatch):
    """A preset that mines, its data sets, and where the mined lie."""
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    make_encoder().save(tmp_path / "encoder")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.yaml").write_text("{}")
    words = ["the old cat", "a fast car", "red bus", "blue dog", "the new car", "slow bus"]
    records = [ir(f"find {text}", text) for text in words]
    records[0] = replace(records[0], negatives=("its own",))
    write_splits(tmp_path / "qa", {split: records for split in ("train", "dev", "test")})

    def load(**mine):
        preset = Preset(
            name="p",
            description="",
            seeds=[0],
            encoder={"name": "encoder"},
            datasets=[{"name": "qa", "mine": {k: v for k, v in mine.items() if v is not None}}],
            training={"batch_sizes": {"ir": 2, "sts": 2, "mixed": 2}},
            variants={"ir_only": {"tasks": ["ir"]}},
        )
        return preset, {"qa": load_dataset("qa")}

    return load


def test_a_preset_mines_once_for_records_without_negatives(asked, caplog, monkeypatch):
    preset, datasets = asked(negatives=2, margin=1.0)
    first = with_mined(preset, datasets)["qa"]
    train = first.split("train")
    assert train[0].negatives == ("its own",)
    assert first.splits["test"] == datasets["qa"].splits["test"]
    embedder = Embedder(EncoderSettings(name="encoder"))
    expected = mine(embedder, datasets["qa"].split("train"), relative_margin=0.0, negatives=2)
    assert [r.negatives for r in train[1:]] == [r.negatives for r in expected[1:]]
    assert {record.dataset for record in train} == {"qa"}
    found = sum(len(record.negatives) for record in train)
    assert f"qa: {found} hard negatives for 6 training records" in caplog.text
    assert first.content_hash != datasets["qa"].content_hash

    monkeypatch.setattr("codiemb_lib.evaluate.mining.mine", None)  # not called again
    again = with_mined(*asked(negatives=2, margin=1.0))["qa"]
    assert (again.splits["train"], again.content_hash) == (tuple(train), first.content_hash)


@pytest.mark.parametrize(
    "change",
    [
        {"negatives": 1},
        {"margin": 0.5},
        {"margin": None, "absolute_margin": 0.1},
        {"encoder": "another"},
    ],
)
def test_mined_negatives_hang_on_all_that_decides_them(asked, make_encoder, tmp_path, change):
    make_encoder(seed=1).save(tmp_path / "another")
    first = with_mined(*asked(negatives=2, margin=1.0))["qa"]
    other = with_mined(*asked(**{"negatives": 2, "margin": 1.0} | change))["qa"]
    assert other.content_hash != first.content_hash
    assert len([*(tmp_path / "data" / "cache" / "mined").glob("qa-*")]) == 2


def test_a_preset_without_it_mines_nothing(asked):
    preset, datasets = asked()
    plain = preset.datasets[0].model_copy(update={"mine": None})
    assert with_mined(preset.model_copy(update={"datasets": (plain,)}), datasets) == datasets
