"""Taggers of entities: phrases of a file, and MedCAT, real where it is installed, else as its documentation has it."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from types import ModuleType

import pytest

from mhe import MetricUnavailableError, UserError, open_catalog
from mhe.testing import check_tagger
from mhe_metrics.medcat_tagger import MedcatTagger
from mhe_metrics.phrase_tagger import PhraseTagger

TEXT = "A large pleural effusion in the left lung; finding."


def phrases(tmp_path, text):
    file = tmp_path / "phrases.txt"
    file.write_text(text, encoding="utf-8")
    return PhraseTagger(PhraseTagger.Options(file=file))


def found_by(tagger, text):
    (spans,) = tagger.spans([text])
    return [text[start:end] for start, end in spans]


# ---------------------------------------------------------------- phrases


@pytest.mark.parametrize(
    ("lines", "text", "found"),
    [
        ("effusion\npleural effusion", "Pleural EFFUSION, effusion", ["Pleural EFFUSION", "effusion"]),
        ("lung", "lungs, lung. prolung", ["lung"]),
        ("x-ray", "X ray; x-ray; xray; x.ray", ["X ray", "x-ray"]),
        ("left lung", "left, lung", []),
        ("left lung\nlung", "left left lung", ["left lung"]),
        ("a b c\nb c d e", "a b c d e", ["a b c"]),
        ("a b c\nb", "a b d", ["b"]),
        ("crohn's disease", "Crohn’s disease", ["Crohn’s disease"]),
        ("straße", "STRASSE", ["STRASSE"]),
        ("\n\n  lung \r\n", "the lung", ["lung"]),
        ("肺", "左 肺 有", ["肺"]),
    ],
)
def test_phrases_are_whole_words_longest_first(tmp_path, lines, text, found):
    assert found_by(phrases(tmp_path, lines), text) == found


def test_phrases_equal_a_plain_search(tmp_path):
    """Against a regular expression with the alternatives in order of length."""
    rng = random.Random(0)
    words = ["a", "b", "c", "d"]
    lines = sorted({" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(12)})
    tagger = phrases(tmp_path, "\n".join(lines))
    pattern = re.compile(r"\b(?:" + "|".join(sorted(lines, key=lambda line: -len(line))) + r")\b")
    seen = 0
    for _ in range(300):
        text = " ".join(rng.choices([*words, "e"], k=rng.randint(0, 15)))
        wanted = [match.span() for match in pattern.finditer(text)]
        assert tagger.spans([text]) == [wanted]
        seen += len(wanted)
    assert seen > 500


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read: No such file"), (b"\n \n", "holds no phrase"), (b"\xff\xfe", "not UTF-8")],
)
def test_phrases_that_are_not_there(tmp_path, content, told):
    file = tmp_path / "phrases.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MetricUnavailableError, match=told):
        PhraseTagger(PhraseTagger.Options(file=file)).spans(["x"])


def test_no_file_says_what_to_set():
    tagger = PhraseTagger(PhraseTagger.Options())
    for ask in (lambda: tagger.spans(["x"]), lambda: tagger.resources):
        with pytest.raises(MetricUnavailableError, match=r"tagger_options\.file=FILE"):
            ask()


def test_phrases_are_known_by_their_content(tmp_path):
    one = phrases(tmp_path, "lung").resources
    assert phrases(tmp_path, "liver").resources != one
    assert phrases(tmp_path, "lung").resources == one


def test_the_catalogue_opens_taggers_with_their_options(tmp_path):
    catalog = open_catalog()
    (tmp_path / "phrases.txt").write_text("lung")
    tagger = catalog.open_tagger("phrases", {"file": str(tmp_path / "phrases.txt")})
    assert tagger.spans(["a lung"]) == [[(2, 6)]]
    with pytest.raises(UserError, match="Did you mean 'phrases'"):
        catalog.open_tagger("phrase", {})
    with pytest.raises(UserError, match="options of tagger 'phrases'"):
        catalog.open_tagger("phrases", {"fil": "x"})


# ---------------------------------------------------------------- MedCAT


def entity(text, word, types):
    return {"start": text.index(word), "end": text.index(word) + len(word), "type_ids": types, "source_value": word}


class FakeCat:
    """The calls of MedCAT's `CAT` that are used, as its documentation has them."""

    def __init__(self, types):
        self.types = types

    @classmethod
    def load_model_pack(cls, model_pack_path):
        if not model_pack_path.endswith("pack"):
            raise ValueError("not a model pack")
        return cls({"effusion": ["T047"], "lung": ["T023", "T999"], "finding": ["T033"]})

    def get_entities(self, text):
        if not text.strip():
            return {}
        words = [(word, types) for word, types in self.types.items() if word in text]
        return {"entities": {n: entity(text, word, types) for n, (word, types) in enumerate(words)}, "tokens": []}


@pytest.fixture
def fake_medcat(monkeypatch, tmp_path):
    module = ModuleType("medcat.cat")
    module.CAT = FakeCat
    whole = ModuleType("medcat")
    whole.__spec__ = importlib.util.spec_from_loader("medcat", None)
    whole.cat = module
    monkeypatch.setitem(sys.modules, "medcat", whole)
    monkeypatch.setitem(sys.modules, "medcat.cat", module)
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "cdb.dat").write_bytes(b"concepts")
    return pack


def medcat(**options):
    return MedcatTagger(MedcatTagger.Options.model_validate(options))


def test_medcat_keeps_the_published_types(fake_medcat):
    tagger = medcat(model_pack=str(fake_medcat))
    assert found_by(tagger, TEXT) == ["effusion", "lung"]
    assert len(MedcatTagger.Options().semantic_types) == 49
    assert found_by(medcat(model_pack=str(fake_medcat), semantic_types=["T033"]), TEXT) == ["finding"]
    assert found_by(medcat(model_pack=str(fake_medcat), semantic_types=[]), TEXT) == ["effusion", "lung", "finding"]
    assert tagger.spans(["", " ", "nothing"]) == [[], [], []]


def test_medcat_keeps_the_contract(fake_medcat):
    check_tagger(MedcatTagger, options={"model_pack": str(fake_medcat)})


def test_a_pack_of_another_ontology_is_not_passed_over_in_silence(fake_medcat, monkeypatch):
    monkeypatch.setattr(FakeCat, "load_model_pack", classmethod(lambda cls, _: cls({"lung": ["9090192"]})))
    with pytest.raises(MetricUnavailableError, match=r"9090192.* are not UMLS semantic types"):
        medcat(model_pack=str(fake_medcat)).spans([TEXT])
    assert found_by(medcat(model_pack=str(fake_medcat), semantic_types=["9090192"]), TEXT) == ["lung"]


def test_a_pack_is_known_by_its_content(fake_medcat):
    before = medcat(model_pack=str(fake_medcat)).resources
    (fake_medcat / "cdb.dat").write_bytes(b"other concepts")
    assert medcat(model_pack=str(fake_medcat)).resources != before


def test_a_pack_that_is_absent_or_broken_is_said(fake_medcat, tmp_path):
    with pytest.raises(MetricUnavailableError, match=r"tagger_options\.model_pack"):
        medcat().spans([TEXT])
    with pytest.raises(MetricUnavailableError, match="does not exist"):
        _ = medcat(model_pack=str(tmp_path / "no-pack")).resources
    (tmp_path / "broken").mkdir()
    with pytest.raises(MetricUnavailableError, match=r"cannot be loaded \(ValueError: not a model pack\)"):
        medcat(model_pack=str(tmp_path / "broken")).spans([TEXT])


@pytest.mark.skipif(importlib.util.find_spec("medcat") is not None, reason="MedCAT is installed")
def test_without_medcat_the_reason_says_what_to_install(tmp_path):
    for ask in (lambda tagger: tagger.spans([TEXT]), lambda tagger: tagger.resources):
        with pytest.raises(MetricUnavailableError, match=r"pip install 'mhe\[medcat\]'"):
            ask(medcat(model_pack=str(tmp_path)))


@pytest.mark.skipif(importlib.util.find_spec("medcat") is None, reason="MedCAT is not installed")
@pytest.mark.parametrize("is_zip", [False, True])
def test_the_real_medcat_with_a_pack_made_here(tmp_path, is_zip):
    from medcat.cat import CAT
    from medcat.config import Config
    from medcat.model_creation.cdb_maker import CDBMaker
    from medcat.vocab import Vocab

    config = Config()
    config.general.nlp.provider = "regex"
    config.components.linking.train = False
    concepts = tmp_path / "concepts.csv"
    rows = ["C0032227,pleural effusion,O,P,T047", "C0024109,lung,O,P,T023", "C0243095,finding,O,P,T033"]
    concepts.write_text("cui,name,ontologies,name_status,type_ids\n" + "\n".join(rows))
    folder = tmp_path / "packs"
    folder.mkdir()
    CAT(CDBMaker(config).prepare_csvs([str(concepts)]), Vocab(), config).save_model_pack(str(folder), pack_name="tiny")
    (pack,) = [path for path in folder.iterdir() if (path.suffix == ".zip") == is_zip]
    tagger = medcat(model_pack=str(pack))
    assert found_by(tagger, TEXT) == ["pleural effusion", "lung"]
    assert json.loads(json.dumps(tagger.resources))["medcat"]
    check_tagger(MedcatTagger, options={"model_pack": str(pack)})
