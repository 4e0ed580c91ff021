"""ClinicalBLEURT: BLEURT-20 fine-tuned on clinical notes, with the user's own checkpoint and never another model.

    ClinicalBLEURT = mean over samples of   max over references of   score(reference, answer)

Computed as `bleurt`: the regression model's score of `[CLS] reference [SEP] answer [SEP]`, of several references the
highest, averaged over samples. The published checkpoint was trained on private notes and is not on the hub: whoever
has it converts it to transformers' format and names its folder, `--set metrics.clinicalbleurt.checkpoint=FOLDER`.
Without one ClinicalBLEURT is null. A public BLEURT is refused under this name; of a folder nobody but its owner knows
what it was trained on, so that the checkpoint's content digest stands in the record: compare digests before values.

Range: none that is sure, about 0 to 1. Higher is better. Source: Ben Abacha et al., An Investigation of Evaluation
Metrics for Automated Medical Note Generation, arXiv:2305.17364; BLEURT-20: Pu et al., EMNLP 2021. Blind to: what its
notes did not hold, such as the style of captions; and to text beyond 512 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import MetricUnavailableError, MetricValue
from mhe_metrics.bleurt import Bleurt

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = ("elron/", "lucadiliello/")
"""Owners of public conversions of BLEURT."""


class ClinicalBleurt(Bleurt):
    """Mean ClinicalBLEURT; columns: score, and 1."""

    name = "clinicalbleurt"
    values = (
        MetricValue(
            "clinicalbleurt", "the judgement of a BLEURT that was trained on clinical notes", floor=None, ceiling=None
        ),
    )

    def _find(self) -> Path:
        name = self._options.checkpoint or ""
        if name.lower().startswith(PUBLIC):
            raise MetricUnavailableError(f"{name} is BLEURT, not ClinicalBLEURT: use the metric bleurt for it")
        return super()._find()

    def _missing(self) -> str:
        return (
            "no checkpoint is set, and ClinicalBLEURT has no public one: "
            "--set metrics.clinicalbleurt.checkpoint=FOLDER with your own"
        )
