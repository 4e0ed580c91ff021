"""What scoring keeps between two calls, and that it changes no value: processes, tables, tokens; very long texts."""

from __future__ import annotations

import errno
import gc
import os
import random
import sys
import tempfile
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from meteor_program import no_paraphrases, program_numbers
from mhe import Case, MetricContext, MetricUnavailableError, Sample, open_catalog
from mhe.remembered_profiles import remembering_profiles
from mhe_metrics import filtered_jar, ptb_tokens, tokenizer_jar
from mhe_metrics.filtered_jar import FilteredJar
from mhe_metrics.java import find_jar, find_java
from mhe_metrics.meteor import Meteor, MeteorOptions, columns_of
from mhe_metrics.meteor_jar import MeteorJar, _comparable_words, score_line
from mhe_metrics.ngrams import count_ngrams
from mhe_metrics.texts import CleanedCase
from mhe_metrics.tokenizer_jar import TokenizerFailedError, TokenizerJar


@pytest.fixture
def java():
    try:
        find_java()
        find_jar("meteor", "data", "paraphrase-en.gz")
    except MetricUnavailableError as error:
        pytest.skip(str(error))


HOSTILE = ["a\rb", "|||", "", "mark", "marka", "markb", "x" * 1000, "x" * 100_000, "word " * 10_000, "\ud800", "The"]


def test_a_kept_tokenizer_gives_what_a_new_one_gives(java, monkeypatch):
    draw = random.Random(0)
    words = ["lung", "T2-weighted", "3.5", "cm.", "(left)", "don't", "µm", "B.", "左肺", "e.g.", "1/2", "—"]
    texts = [" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(400)] + HOSTILE
    monkeypatch.setattr(ptb_tokens, "MANY", 10**9)
    expected = ptb_tokens.ptb_tokens(texts)
    monkeypatch.setattr(ptb_tokens, "MANY", 0)
    assert ptb_tokens.ptb_tokens(texts) == expected
    kept = ptb_tokens._kept[0]
    # Batches of every size: what one leaves in the pipe must not reach the next.
    for size in (1, 3, 50, 411, 2):
        assert ptb_tokens.ptb_tokens(texts[-size:]) == expected[-size:]
    assert ptb_tokens._kept[0] is kept
    # One that is gone is replaced without a word lost.
    kept._process.kill()
    assert ptb_tokens.ptb_tokens(texts) == expected


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec sleep 30", "did not end in time"),
        ("exit 3", "ended"),
        ("while read l; do echo; done", "in time"),
    ],
)
def test_a_kept_tokenizer_that_fails_is_an_error_and_never_a_hang(monkeypatch, tmp_path, script, reason):
    program, jar = tmp_path / "java", tmp_path / "a.jar"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    jar.touch()
    monkeypatch.setattr(tokenizer_jar, "find_java", lambda: program)
    monkeypatch.setattr(tokenizer_jar, "find_jar", lambda *parts: jar)
    child = TokenizerJar()
    with pytest.raises(TokenizerFailedError, match=reason):
        child.ask(["text"] * 10_000, timeout=1)
    child.close()


def test_the_process_of_a_metric_that_is_gone_serves_the_next_one(tmp_path):
    context = MetricContext(cache_dir=tmp_path)
    first = Meteor(MeteorOptions(), context)
    first._engine._jar = MeteorJar()  # started by nobody yet
    engine, gone = first._engine, weakref.ref(first)
    assert Meteor(MeteorOptions(), context)._engine is not engine, "two at a time share nothing"
    del first
    gc.collect()
    assert gone() is None
    assert Meteor(MeteorOptions(), context)._engine is engine


def test_a_call_that_nobody_waits_for_is_ended_before_the_next(monkeypatch, tmp_path):
    """Two calls at once would read each other's answers: the first is still under way when its metric is gone."""
    engine, asked = FilteredJar(tmp_path), []

    def slowly(texts):
        asked.append(f"{texts[0].answer} begins")
        time.sleep(0.2)
        asked.append(f"{texts[0].answer} ends")
        return [[0.0] * 23] * len(texts)

    monkeypatch.setattr(engine, "_ask", slowly)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(engine.ask, [[CleanedCase("one", ("x",))], [CleanedCase("two", ("x",))]]))
    first, second = asked[0].split()[0], asked[2].split()[0]
    assert asked == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
    assert first != second


def test_no_room_for_the_pairs_is_a_reason_and_leaves_nothing(java, monkeypatch, tmp_path):
    class Full:
        def write_filtered(self, phrases, path):
            path.touch()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(MetricUnavailableError, match=r"No space left on device.*TMPDIR"):
        filtered_jar._start(Full(), None)
    assert list(tmp_path.iterdir()) == []


def test_references_are_cleaned_once_for_several_models():
    asked = []

    class Upper:
        name, version, kind, source, defects = "upper", "1", "caption", "", ()

        def clean(self, texts):
            asked.append(list(texts))
            return [text.upper() for text in texts]

    profile = Upper()

    class Catalog:
        def profile(self, name):
            return profile

    def cleaned(answer):
        (found,) = remembering_profiles(Catalog(), ["upper"], [Case(Sample("1", (), ("right", "too")), answer)])
        return found.clean([answer, "right", "too", answer])

    assert cleaned("one") == ["ONE", "RIGHT", "TOO", "ONE"]
    assert cleaned("two") == ["TWO", "RIGHT", "TOO", "TWO"]
    assert asked == [["one", "right", "too"], ["two"]]
    Upper.version = "2"
    assert cleaned("two") == ["TWO", "RIGHT", "TOO", "TWO"]
    assert asked[-1] == ["two", "right", "too"], "another version cleans anew"


def test_words_without_end_have_a_value_and_cost_the_other_captions_nothing(java, tmp_path):
    endless = "word " * 10_000
    pairs = [("a lung", "the lung"), (endless, endless), (endless, "a word"), ("a lung", "the lung")]
    jar = MeteorJar(no_paraphrases(tmp_path))
    rows = columns_of(np.array(jar.ask([score_line(answer, [right]) for answer, right in pairs])))
    jar.close()
    scores = Meteor(MeteorOptions(), MetricContext(cache_dir=tmp_path)).per_sample(rows)["meteor"]
    assert scores[1] == 1
    assert 0 < scores[2] < 0.1
    assert scores[0] == scores[3] > 0


def test_texts_are_cut_only_where_too_many_words_are_equal():
    assert _comparable_words("word " * 142, "word " * 142) == 141
    assert _comparable_words("word " * 141, "Word " * 141) == sys.maxsize
    many = " ".join(f"w{number}" for number in range(15_000))
    assert score_line(many, [many]) == f"SCORE ||| {many} ||| {many}"
    parts = score_line("word, " * 500, ["word " * 500, "short"]).split(" ||| ")
    assert parts[2] == "short"
    assert 100 < len(parts[1].split()) < 250


def test_counted_ngrams_are_those_of_a_counter():
    draw = random.Random(1)
    texts = [draw.choices("abc", k=draw.randrange(9)) for _ in range(60)] + [[]]
    for order, found in enumerate(count_ngrams(texts, 4), 1):
        expected = [Counter(tuple(text[at : at + order]) for at in range(len(text) - order + 1)) for text in texts]
        assert len(found.texts) == sum(map(len, expected))
        # For each number the n-grams that it can stand for, by where it is counted how often.
        candidates = {}
        for text, ngram, count in zip(found.texts, found.ngrams, found.counts, strict=True):
            here = {name for name, times in expected[text].items() if times == count}
            candidates[ngram] = candidates.get(ngram, here) & here
        assert all(candidates.values())
        assert len(candidates) == len(set().union(*expected))


def test_new_phrases_give_what_the_whole_table_gives(java, tmp_path):
    """A second model's answers bring phrases that the first one's table lacks; the values are the whole table's."""
    folder = os.environ.get("MHE_TEST_DATA")
    if not folder:
        pytest.skip("MHE_TEST_DATA is not set, so there are no real captions")
    rows = (Path(folder) / "roco_v1" / "captions_test.tsv").read_text(encoding="utf-8").split("\n")[1:]
    captions = open_catalog().profile("plain").clean([row.split("\t")[3] for row in rows if row][:1200])

    def cases(references, answers):
        return [
            Case(Sample(str(number), (), (reference,)), answer)
            for number, (reference, answer) in enumerate(zip(references, answers, strict=True))
        ]

    class Tokens:
        name, version, kind, source, defects = "tokens", "1", "caption", "here", ()

        def clean(self, texts):
            return list(texts)

    references = captions[:300]
    context = MetricContext(cache_dir=tmp_path)
    metric = Meteor(MeteorOptions(), context)
    metric.statistics(cases(references, captions[300:600]), Tokens())
    second = metric.statistics(cases(references, captions[600:900]), Tokens())
    third = metric.statistics(cases(references, captions[900:1200]), Tokens())
    for answers, found in ((captions[600:900], second), (captions[900:1200], third)):
        lines = [score_line(answer, [reference]) for answer, reference in zip(answers, references, strict=True)]
        assert (columns_of(np.array(program_numbers(lines), dtype=np.float64)) == found).all()


def test_what_was_begun_is_what_is_computed(java, tmp_path):
    cases = [Case(Sample(str(n), (), (f"a small mass number {n}",)), f"mass {n}, small") for n in range(40)]
    others = cases[:10]
    plain = open_catalog().profile("plain")
    metric = Meteor(MeteorOptions(), MetricContext(cache_dir=tmp_path))
    expected = metric.statistics(cases, plain)
    metric.begin(cases, plain)
    assert (metric.statistics(cases, plain) == expected).all()
    metric.begin(cases, plain)
    assert (metric.statistics(others, plain) == expected[:10]).all(), "of other cases than were begun"
    assert (metric.statistics(cases, plain) == expected).all()
