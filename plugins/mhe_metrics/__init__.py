"""Caption and question-answering metrics, scoring profiles, and the majority-answer baseline.

Only the hooks are here: each thing is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import BackendFactory, MetricFactory, ModelSpec, Profile


def _accuracy() -> MetricFactory:
    from mhe_metrics.accuracy import Accuracy

    return Accuracy


def _bleu() -> MetricFactory:
    from mhe_metrics.bleu import Bleu

    return Bleu


def _cider() -> MetricFactory:
    from mhe_metrics.cider import Cider

    return Cider


def _exact_match() -> MetricFactory:
    from mhe_metrics.exact_match import ExactMatch

    return ExactMatch


def _rouge_l() -> MetricFactory:
    from mhe_metrics.rouge_l import RougeL

    return RougeL


def _token_f1() -> MetricFactory:
    from mhe_metrics.token_f1 import TokenF1

    return TokenF1


def _coco() -> Profile:
    from mhe_metrics.profiles.coco import COCO

    return COCO


def _plain() -> Profile:
    from mhe_metrics.profiles.plain import PLAIN

    return PLAIN


def _strict() -> Profile:
    from mhe_metrics.profiles.strict import STRICT

    return STRICT


def _majority() -> BackendFactory:
    from mhe_metrics.majority import MajorityBackend

    return MajorityBackend


@hookimpl
def register_metrics() -> Sequence[Provider[MetricFactory]]:
    """Every metric of this plugin."""
    return [
        Provider("accuracy", "share of right answers: overall, closed, open, and yes/no apart", _accuracy),
        Provider("bleu", "BLEU-1 to BLEU-4 over the corpus, as COCO's caption evaluation computes them", _bleu),
        Provider("cider", "CIDEr-D, as COCO's caption evaluation computes it", _cider),
        Provider("exact-match", "share of answers that equal a reference after the profile's cleaning", _exact_match),
        Provider("rouge-l", "ROUGE-L (beta 1.2), as COCO's caption evaluation computes it", _rouge_l),
        Provider("token-f1", "clipped token precision, recall and F1 against the best reference", _token_f1),
    ]


@hookimpl
def register_profiles() -> Sequence[Provider[Profile]]:
    """Every scoring convention of this plugin."""
    return [
        Provider("coco", "captions as Penn Treebank tokens without punctuation, through Java", _coco, "metrics"),
        Provider("plain", "captions as lower-case words, without Java", _plain),
        Provider("strict", "answers right only if equal to a reference, case and punctuation apart", _strict),
    ]


@hookimpl
def register_backends() -> Sequence[Provider[BackendFactory]]:
    """The baseline that sees neither image nor question."""
    return [Provider("majority", "the most frequent training answer: a baseline", _majority)]


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """The baseline under its name."""
    from mhe import ModelSpec

    return [
        ModelSpec(
            name="majority",
            backend="majority",
            location="the task's training answers",
            summary="answers with the most frequent training answer of the question's type: a baseline",
        )
    ]
