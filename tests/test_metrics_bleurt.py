"""BLEURT against its formula written out in numpy, on small checkpoints of both published layouts."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Sample, open_catalog
from mhe.testing import check_metric
from mhe_metrics.bleurt import Bleurt
from mhe_metrics.bleurt_model import BleurtModel, cut_pair
from mhe_metrics.clinicalbleurt import ClinicalBleurt
from mhe_metrics.encoders import encoder_digest
from mhe_metrics.profiles.plain import PLAIN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CONTEXT = MetricContext(cache_dir=Path("unused"), device="cpu")
POSITIONS = 40
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "a", "lung", "nodule", "effusion", "left", "[", "]", "sep"]
TEXTS = ["a small nodule in the left lung", "no effusion, or pneumothorax seen", "a large mass of the liver [SEP]"]


def random_weights(names_and_shapes):
    """Texts are told apart, and scores are about as large as BLEURT's."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if name.startswith("classifier") else 0.8)
        for name, shape in names_and_shapes
    }


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """As Elron/bleurt-…: a BERT for sequence classification with one label."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    config = transformers.BertConfig(vocab_size=len(WORDS), num_labels=1, **SIZES)
    model = transformers.BertForSequenceClassification(config)
    model.load_state_dict(random_weights([(name, w.shape) for name, w in model.state_dict().items()]))
    model.save_pretrained(folder)
    return folder


def pieces():
    sentencepiece = pytest.importorskip("sentencepiece")
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 50),
        model_writer=made,
        vocab_size=70,
        hard_vocab_limit=False,
        control_symbols=["[CLS]", "[SEP]"],
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return made.getvalue()


def published_names(width):
    """The weights of `BleurtForSequenceClassification` of the package bleurt-pytorch."""
    hidden, between = SIZES["hidden_size"], SIZES["intermediate_size"]
    inner = width or hidden
    yield "bleurt.embeddings.word_embeddings.weight", (100, inner)
    yield "bleurt.embeddings.position_embeddings.weight", (POSITIONS, inner)
    yield "bleurt.embeddings.token_type_embeddings.weight", (2, inner)
    shapes = [("bleurt.embeddings.LayerNorm", (inner,))]
    if width:
        shapes.append(("bleurt.encoder.embedding_projection", (hidden, width)))
    for number in range(SIZES["num_hidden_layers"]):
        layer = f"bleurt.encoder.layer.{number}"
        shapes += [(f"{layer}.attention.self.{part}", (hidden, hidden)) for part in ("query", "key", "value")]
        shapes += [
            (f"{layer}.attention.output.dense", (hidden, hidden)),
            (f"{layer}.attention.output.LayerNorm", (hidden,)),
            (f"{layer}.intermediate.dense", (between, hidden)),
            (f"{layer}.output.dense", (hidden, between)),
            (f"{layer}.output.LayerNorm", (hidden,)),
        ]
    shapes += [("bleurt.pooler.dense", (hidden, hidden)), ("classifier", (1, hidden))]
    for name, shape in shapes:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]


def write_own(folder, width=8, *, safetensors=True, drop=(), **config):
    """As lucadiliello/BLEURT-20: a layout of its own, and a SentencePiece model."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    weights = random_weights(published_names(width))
    weights = {name: value for name, value in weights.items() if name not in drop}
    weights["bleurt.embeddings.position_ids"] = torch.arange(POSITIONS).unsqueeze(0)
    if safetensors:
        save_file(weights, folder / "model.safetensors")
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    told = {"model_type": "bleurt", "vocab_size": 100, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **SIZES}
    told |= {"embedding_size": width, "architectures": ["BleurtForSequenceClassification"], **config}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "spm.model").write_bytes(pieces())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BleurtSPTokenizer"}))
    return folder


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    return write_own(tmp_path_factory.mktemp("own"))


@pytest.fixture(params=["bert", "own"])
def folder(request):
    return request.getfixturevalue(request.param)


class Raw:
    """A profile that leaves texts alone."""

    name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

    def clean(self, texts):
        return list(texts)


def make(folder, factory=Bleurt, **options):
    checkpoint = {} if folder is None else {"checkpoint": str(folder)}
    return factory(factory.Options(**checkpoint, **options), CONTEXT)


def rows(metric, pairs):
    """Scores of pairs of answer and references."""
    cases = [
        Case(Sample(id=str(n), images=(), references=(refs,) if isinstance(refs, str) else tuple(refs)), answer)
        for n, (answer, refs) in enumerate(pairs)
    ]
    return metric.statistics(cases, Raw())[:, 0].tolist()


def scores(pairs, folder, **options):
    return rows(make(folder, **options), pairs)


# ---------------------------------------------------------------- the formula, by hand


def tokens_of(folder, text):
    """Word pieces of the small vocabulary are whole words; pieces are SentencePiece's."""
    if (folder / "spm.model").is_file():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        found = model.encode(text, out_type=str)
        return [1 if piece in ("[CLS]", "[SEP]") else model.piece_to_id(piece) for piece in found]
    words = text.lower().replace("[", " [ ").replace("]", " ] ").replace(",", " , ").split()
    return [WORDS.index(word) if word in WORDS else 1 for word in words]


def by_hand(folder, reference, answer, room=POSITIONS - 3):
    """The score in double precision, one pair, no padding, from the weights in the file."""
    from safetensors.torch import load_file

    weights = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    weights = {name.replace("bert.", "").replace("bleurt.", ""): value for name, value in weights.items()}

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    first, second = tokens_of(folder, reference), tokens_of(folder, answer)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    opening, closing = tokens_of_special(folder)
    numbers = [opening, *first, closing, *second, closing]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    x = weights["embeddings.word_embeddings.weight"][numbers]
    x = x + weights["embeddings.position_embeddings.weight"][: len(numbers)]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][segments])
    if "encoder.embedding_projection.weight" in weights:
        x = linear("encoder.embedding_projection", x)
    heads = SIZES["num_attention_heads"]
    for number in range(SIZES["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            linear(f"{layer}.attention.self.{part}", x).reshape(len(numbers), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        weight = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]))
        mixed = (weight / weight.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(numbers), -1)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", mixed))
        between = gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", between))
    return float(linear("classifier", np.tanh(linear("pooler.dense", x[0])))[0])


def tokens_of_special(folder):
    if (folder / "spm.model").is_file():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        return model.piece_to_id("[CLS]"), model.piece_to_id("[SEP]")
    return WORDS.index("[CLS]"), WORDS.index("[SEP]")


PAIRS = [
    ("a lung nodule", "no effusion"),
    ("a nodule", "a large mass of the liver"),
    ("left", "left"),
    ("", "a lung"),
    ("a lung", ""),
    ("", ""),
    ("no [SEP] lung", "a [CLS] nodule, 胸"),  # the very text of a special token
    ("lung " * 100, "a nodule"),
    ("a nodule", "lung " * 100),
    ("lung " * 60, "nodule " * 60),
]


def test_equal_to_the_formula(folder):
    found = scores(PAIRS, folder)
    wanted = [by_hand(folder, reference, answer) for answer, reference in PAIRS]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    assert np.std(wanted) > 0.01  # the checkpoint tells texts apart, or the test would say nothing


def test_the_reference_comes_first(folder):
    (right,), (exchanged,) = scores([("a lung", "no effusion")], folder), scores([("no effusion", "a lung")], folder)
    assert abs(right - exchanged) > 1e-3
    assert right == pytest.approx(by_hand(folder, "no effusion", "a lung"), abs=2e-6)


@pytest.mark.parametrize(
    ("first", "second", "room"), [(9, 3, 8), (3, 9, 8), (9, 9, 8), (9, 9, 7), (5, 2, 7), (30, 28, 5)]
)
def test_cut_as_bleurt_cuts(first, second, room):
    reference, answer = list(range(first)), list(range(second))
    while len(reference) + len(answer) > room:
        (reference if len(reference) > len(answer) else answer).pop()
    assert cut_pair(tuple(range(first)), tuple(range(second)), room) == (tuple(reference), tuple(answer))


def test_a_smaller_limit_may_be_set(folder):
    text = "lung nodule effusion a left no " * 3
    wanted = by_hand(folder, text, "a lung nodule", room=9)
    assert scores([("a lung nodule", text)], folder, tokens=12) == [pytest.approx(wanted, abs=2e-6)]
    assert abs(wanted - scores([("a lung nodule", text)], folder)[0]) > 1e-4
    assert BleurtModel(folder, most_tokens=512, device="cpu").most_tokens == POSITIONS


def test_a_score_does_not_depend_on_its_batch(folder):
    metric = make(folder, batch_size=64)
    alone = [rows(metric, [pair])[0] for pair in PAIRS]
    np.testing.assert_allclose(rows(metric, PAIRS), alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores(PAIRS[::-1], folder, batch_size=3)[::-1], alone, rtol=0, atol=1e-6)


def test_of_several_references_the_best_counts(folder):
    metric = make(folder)
    references = ["no effusion", "a lung", "left"]
    each = [rows(metric, [("a lung nodule", reference)])[0] for reference in references]
    assert len({round(score, 4) for score in each}) == 3
    assert rows(metric, [("a lung nodule", references)])[0] == pytest.approx(max(each), abs=1e-6)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(("width", "safetensors"), [(8, False), (16, True), (None, True)])
def test_published_layouts_are_read(tmp_path, width, safetensors):
    folder = write_own(tmp_path / "checkpoint", width, safetensors=safetensors)
    found = scores(PAIRS[:3], folder)
    if not safetensors:
        write_own(folder, width)
    wanted = [by_hand(folder, reference, answer) for answer, reference in PAIRS[:3]]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_a_vocabulary_of_berts_beside_a_layout_of_its_own(tmp_path, bert):
    folder = write_own(tmp_path / "checkpoint", None)
    (folder / "spm.model").unlink()
    shutil.copy(bert / "vocab.txt", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BleurtTokenizerFast"}))
    assert scores(PAIRS[:1], folder) == [pytest.approx(by_hand(folder, PAIRS[0][1], PAIRS[0][0]), abs=2e-6)]


def edited(folder, tmp_path, **changes):
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_what_is_no_bleurt_is_refused(tmp_path, bert, own):
    dropped = write_own(tmp_path / "dropped", drop={"bleurt.pooler.dense.bias"})
    with pytest.raises(MetricUnavailableError, match="1 weights are missing and 0 have no place"):
        scores(PAIRS, dropped)
    with pytest.raises(MetricUnavailableError, match="do not fit its config"):
        scores(PAIRS, edited(own, tmp_path / "a", vocab_size=99))
    with pytest.raises(MetricUnavailableError, match="no BLEURT checkpoint: model_type is 'gpt2'"):
        scores(PAIRS, edited(bert, tmp_path / "b", model_type="gpt2"))
    with pytest.raises(MetricUnavailableError, match="lacks hidden_size"):
        scores(PAIRS, edited(own, tmp_path / "c", hidden_size=None))
    headless = tmp_path / "headless"
    shutil.copytree(bert, headless)
    transformers.BertModel.from_pretrained(bert).save_pretrained(headless)
    with pytest.raises(MetricUnavailableError, match=r"weights are missing .*classifier.* regression head is needed"):
        scores(PAIRS, headless)
    classes = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=14, num_labels=3, **SIZES))
    classes.save_pretrained(headless)
    with pytest.raises(MetricUnavailableError, match="has 3 labels, where BLEURT has one score"):
        scores(PAIRS, headless)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetricUnavailableError, match=r"no readable config\.json"):
        scores(PAIRS, tmp_path / "empty")
    damaged = edited(own, tmp_path / "d")
    (damaged / "spm.model").write_bytes(b"no model")
    with pytest.raises(MetricUnavailableError, match="cannot be loaded"):
        scores(PAIRS, damaged)


def test_the_checkpoint_is_known_by_its_content(tmp_path, folder):
    assert make(folder).resources == {"checkpoint": encoder_digest(folder)}
    copy = edited(folder, tmp_path, note="retrained")
    assert make(copy).resources != make(folder).resources


@pytest.mark.parametrize("name", ["bleurt", "clinicalbleurt"])
def test_without_a_checkpoint_it_is_null_with_the_reason(name, tmp_path):
    from mhe.scoring import score_cases, uncomputed

    catalog = open_catalog()
    case = Case(Sample(id="1", images=(), references=("a lung",)), "a lung")
    records = score_cases(
        catalog,
        catalog.task("phantom-caption"),
        [case],
        all_samples=[case.sample],
        metrics=[name],
        profiles=["plain"],
        run_key="run",
        folder=tmp_path,
    )
    value = records[0].values[0]
    assert (value.name, value.value) == (name, None)
    assert f"--set metrics.{name}.checkpoint=FOLDER" in value.reason
    assert uncomputed(records) == records


def test_a_checkpoint_that_cannot_be_had_is_unavailable(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MetricUnavailableError, match=r"'nobody/no-such-bleurt' cannot be had from the hub"):
        scores(PAIRS, "nobody/no-such-bleurt")
    with pytest.raises(MetricUnavailableError, match="neither a folder nor a hub name"):
        scores(PAIRS, "no-such-folder")


def test_the_contract_holds(own):
    check_metric(Bleurt, PLAIN, options={"checkpoint": str(own), "device": "cpu"}, cases=CONTRACT_CASES)


def random_case(number):
    return Case(Sample(id=str(number), images=(), references=(TEXTS[number % 3],)), TEXTS[(number + 1) % 3])


CONTRACT_CASES = [random_case(number) for number in range(6)]


def test_clinicalbleurt_is_the_users_own_and_never_a_public_one(own):
    case = CONTRACT_CASES[:1]
    same = make(own, ClinicalBleurt).statistics(case, Raw())
    assert same.tolist() == make(own).statistics(case, Raw()).tolist()
    assert [value.name for value in ClinicalBleurt.values] == ["clinicalbleurt"]
    for name in ("lucadiliello/BLEURT-20", "Elron/bleurt-large-512"):
        with pytest.raises(MetricUnavailableError, match="is BLEURT, not ClinicalBLEURT: use the metric bleurt"):
            make(name, ClinicalBleurt).statistics(case, Raw())
