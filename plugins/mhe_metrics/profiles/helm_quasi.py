r"""`helm-quasi`: HELM's quasi-exact match, the same for open and closed questions.

    credit = 1 if cleaned(answer) equals cleaned(reference) for any reference, else 0

Cleaned: lower case, ASCII punctuation deleted, the articles a, an, the deleted, white space unified. HELM's exact
match (equality after stripping white space) is stricter and no profile of its own; its token F1 is the metric
`token-f1`, except that HELM counts each word once. HELM knows no question types: they are the data set's.

Blind to: right answers in other words or another order (`Yes, there is.` is wrong for `Yes`).
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

from mhe_metrics.profiles.question_types import declared_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample

_DELETED = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class HelmQuasi:
    """Equality without case, punctuation and articles."""

    name = "helm-quasi"
    version = "1"
    kind = "vqa"
    source = "Liang et al., HELM (arXiv:2211.09110), quasi_exact_match; normalisation from QuAC's scorer"
    defects: Sequence[str] = (
        "a decimal point is deleted: `35` is right for `3.5`",
        "the article goes everywhere: `hepatitis` is right for `hepatitis A`",
        "an answer of which nothing is left is right for such a reference: `the` for `A`",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as it is compared."""
        return [_cleaned(text) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """As the data set says; else `closed` where every reference is yes or no."""
        return declared_type(sample)

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the cleaned answer equals any cleaned reference, else 0; an empty answer is wrong."""
        return float(bool(answer) and _cleaned(answer) in map(_cleaned, sample.references))


def _cleaned(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DELETED)).split())


HELM_QUASI = HelmQuasi()
