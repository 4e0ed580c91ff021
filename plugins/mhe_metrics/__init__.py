"""Caption and question-answering metrics, scoring profiles, and the majority-answer baseline.

Only the hooks are here: each thing is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import BackendFactory, MetricFactory, ModelSpec, Profile, TaggerFactory


def _accuracy() -> MetricFactory:
    from mhe_metrics.accuracy import Accuracy

    return Accuracy


def _answer_statistics() -> MetricFactory:
    from mhe_metrics.answer_statistics import AnswerStatistics

    return AnswerStatistics


def _bertscore() -> MetricFactory:
    from mhe_metrics.bertscore import BertScore

    return BertScore


def _bleurt() -> MetricFactory:
    from mhe_metrics.bleurt import Bleurt

    return Bleurt


def _bleu() -> MetricFactory:
    from mhe_metrics.bleu import Bleu

    return Bleu


def _bleu_open() -> MetricFactory:
    from mhe_metrics.bleu_open import BleuOpen

    return BleuOpen


def _cider() -> MetricFactory:
    from mhe_metrics.cider import Cider

    return Cider


def _clinicalbleurt() -> MetricFactory:
    from mhe_metrics.clinicalbleurt import ClinicalBleurt

    return ClinicalBleurt


def _clipscore() -> MetricFactory:
    from mhe_metrics.clipscore import ClipScore

    return ClipScore


def _evaluate(name: str) -> MetricFactory:
    from mhe_metrics.evaluate_adapter import EvaluateFactory

    return EvaluateFactory(name)


def _exact_match() -> MetricFactory:
    from mhe_metrics.exact_match import ExactMatch

    return ExactMatch


def _medbertscore() -> MetricFactory:
    from mhe_metrics.medbertscore import MedBertScore

    return MedBertScore


def _meteor() -> MetricFactory:
    from mhe_metrics.meteor import Meteor

    return Meteor


def _rouge() -> MetricFactory:
    from mhe_metrics.rouge import Rouge

    return Rouge


def _rouge_l() -> MetricFactory:
    from mhe_metrics.rouge_l import RougeL

    return RougeL


def _spice() -> MetricFactory:
    from mhe_metrics.spice import Spice

    return Spice


def _token_f1() -> MetricFactory:
    from mhe_metrics.token_f1 import TokenF1

    return TokenF1


def _coco() -> Profile:
    from mhe_metrics.profiles.coco import COCO

    return COCO


def _helm_quasi() -> Profile:
    from mhe_metrics.profiles.helm_quasi import HELM_QUASI

    return HELM_QUASI


def _imageclef() -> Profile:
    from mhe_metrics.profiles.imageclef import IMAGECLEF

    return IMAGECLEF


def _llava_med() -> Profile:
    from mhe_metrics.profiles.llava_med import LLAVA_MED

    return LLAVA_MED


def _lmms_eval() -> Profile:
    from mhe_metrics.profiles.lmms_eval import LMMS_EVAL

    return LMMS_EVAL


def _medevalkit() -> Profile:
    from mhe_metrics.profiles.medevalkit import MEDEVALKIT

    return MEDEVALKIT


def _medevalkit_slake() -> Profile:
    from mhe_metrics.profiles.medevalkit_slake import MEDEVALKIT_SLAKE

    return MEDEVALKIT_SLAKE


def _miss() -> Profile:
    from mhe_metrics.profiles.miss import MISS

    return MISS


def _multimedeval() -> Profile:
    from mhe_metrics.profiles.multimedeval import MULTIMEDEVAL

    return MULTIMEDEVAL


def _plain() -> Profile:
    from mhe_metrics.profiles.plain import PLAIN

    return PLAIN


def _strict() -> Profile:
    from mhe_metrics.profiles.strict import STRICT

    return STRICT


def _medcat() -> TaggerFactory:
    from mhe_metrics.medcat_tagger import MedcatTagger

    return MedcatTagger


def _phrases() -> TaggerFactory:
    from mhe_metrics.phrase_tagger import PhraseTagger

    return PhraseTagger


def _majority() -> BackendFactory:
    from mhe_metrics.majority import MajorityBackend

    return MajorityBackend


@hookimpl
def register_metrics() -> Sequence[Provider[MetricFactory]]:
    """Every metric of this plugin."""
    return [
        Provider("accuracy", "share of right answers: overall, closed, open, and yes/no apart", _accuracy),
        Provider("answer-statistics", "length, silence, cut ends, repetition, variety of answers", _answer_statistics),
        Provider("bertscore", "BERTScore precision, recall and F1 under an encoder of your choice", _bertscore, "hf"),
        Provider("bleu", "BLEU-1 to BLEU-4 over the corpus, as COCO's caption evaluation computes them", _bleu),
        Provider("bleu-open", "BLEU-1 of the answers to open questions", _bleu_open),
        Provider("bleurt", "BLEURT under a checkpoint of your choice, BERT's or BLEURT-20", _bleurt, "hf"),
        Provider("cider", "CIDEr-D, as COCO's caption evaluation computes it", _cider),
        Provider("clinicalbleurt", "ClinicalBLEURT under your own checkpoint", _clinicalbleurt, "hf"),
        Provider("clipscore", "CLIPScore and RefCLIPScore under a CLIP of your choice", _clipscore, "hf"),
        Provider("evaluate:", "any metric of Hugging Face evaluate, on each sample alone", _evaluate, "evaluate"),
        Provider("exact-match", "share of answers that equal a reference after the profile's cleaning", _exact_match),
        Provider(
            "medbertscore", "BERTScore with double weight on medical entities, found by a tagger", _medbertscore, "hf"
        ),
        Provider("meteor", "METEOR 1.5 by its authors' program, as COCO's evaluation runs it", _meteor, "metrics"),
        Provider("rouge", "ROUGE-1, -2 and -L as Google's rouge_score computes them", _rouge),
        Provider("rouge-l", "ROUGE-L (beta 1.2), as COCO's caption evaluation computes it", _rouge_l),
        Provider("spice", "SPICE by its authors' program, with your copy of CoreNLP 3.6.0", _spice, "metrics"),
        Provider("token-f1", "clipped token precision, recall and F1 against the best reference", _token_f1),
    ]


@hookimpl
def register_profiles() -> Sequence[Provider[Profile]]:
    """Every scoring convention of this plugin."""
    return [
        Provider("coco", "captions as Penn Treebank tokens without punctuation, through Java", _coco, "metrics"),
        Provider("helm-quasi", "answers equal without case, punctuation and articles, as HELM does it", _helm_quasi),
        Provider(
            "imageclef",
            "captions in lower case, numbers alike, no punctuation, as ImageCLEFmedical has them",
            _imageclef,
        ),
        Provider(
            "llava-med", "closed answers by substring, open ones by token recall, as LLaVA-Med does it", _llava_med
        ),
        Provider(
            "lmms-eval",
            "answers equal after light cleaning, several words for yes and no, as lmms-eval does it",
            _lmms_eval,
        ),
        Provider(
            "medevalkit",
            "exactly one of yes and no inside the answer, else equality: MedEvalKit on VQA-RAD",
            _medevalkit,
        ),
        Provider("medevalkit-slake", "answers equal in lower case: MedEvalKit on SLAKE", _medevalkit_slake),
        Provider("miss", "closed answers right only as the very words yes, Yes, no, No, as MISS does it", _miss),
        Provider(
            "multimedeval",
            "recall of words at least 0.4 (closed) or 0.75 (open), as MultiMedEval does it",
            _multimedeval,
        ),
        Provider("plain", "captions as lower-case words, without Java", _plain),
        Provider("strict", "answers right only if equal to a reference, case and punctuation apart", _strict),
    ]


@hookimpl
def register_taggers() -> Sequence[Provider[TaggerFactory]]:
    """Every tagger of entities."""
    return [
        Provider("medcat", "UMLS entities found by MedCAT with a model pack of your own", _medcat, "medcat"),
        Provider("phrases", "the phrases of a file, as whole words", _phrases),
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
