"""`llava-med`: closed answers by substring, open ones by token recall.

    closed:   credit = 1 if the answer contains `yes` or `no` and contains the reference, else 0
    open:     credit = tokens of the answer that the reference has / (these + tokens of the reference that it lacks)

Texts are cleaned as in the VQA v2 evaluation (`mhe_metrics.vqa_cleaning`). A closed answer contains a word anywhere,
inside other words too. In an open answer a token that it repeats counts each time. The accuracy is the mean of both,
so that a part of an answer earns a part of a point. Where a data set names no type, a question is closed if its
references are yes or no.

The first release of the script left a wrong closed answer that contains `yes` or `no` out of the count, which raised
its closed accuracy; this was mended in December 2023, and here too such an answer counts as 0.

Blind to: everything that an answer says besides: length, contradiction, word order.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mhe_metrics.profiles.question_types import declared_type
from mhe_metrics.vqa_cleaning import vqa_clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample


class LlavaMed:
    """Substrings for closed questions, unclipped token recall for open ones."""

    name = "llava-med"
    version = "1"
    kind = "vqa"
    source = "Li et al., LLaVA-Med (arXiv:2306.00890), llava/eval/run_eval.py"
    defects: Sequence[str] = (
        "`abnormal` and `not seen` are right for `no`; `yes and no` is right for both",
        "a closed answer other than yes or no (`left`, `CT`) is wrong unless `yes` or `no` stands beside it",
        "an open answer gains by repeating a word of the reference, and loses nothing by any other words",
        "`none` and `zero` become `0`, and the article `a` goes from `hepatitis A` too",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its cleaned words between single blanks."""
        return [vqa_clean(text) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """As the data set says; else `closed` where every reference is yes or no."""
        return declared_type(sample)

    def credit(self, answer: str, sample: Sample) -> float:
        """Closed: 1 or 0. Open: the recall, from 0 to 1. The best reference counts; an empty answer earns 0."""
        judge = _contains if self.question_type(sample) == "closed" else _recall
        return max(judge(vqa_clean(answer), vqa_clean(reference)) for reference in sample.references)


def _contains(answer: str, reference: str) -> float:
    return float(("yes" in answer or "no" in answer) and reference in answer)


def _recall(answer: str, reference: str) -> float:
    # The original cleans open answers twice, once with all others and once in its recall.
    said = Counter(vqa_clean(answer).split())
    wanted = Counter(vqa_clean(reference).split())
    found = sum(count for word, count in said.items() if word in wanted)
    lacking = sum(count for word, count in wanted.items() if word not in said)
    return found / (found + lacking) if found else 0.0


LLAVA_MED = LlavaMed()
