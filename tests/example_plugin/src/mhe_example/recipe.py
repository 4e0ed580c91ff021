"""Recipe `example-fit`: tries thresholds, and keeps the one that is right most often on the training split."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mhe import Part, RecipeResult
from mhe_example.backend import brightness, write_threshold

if TYPE_CHECKING:
    from mhe import RecipeJob


class FitOptions(Part):
    """Set with `--set …`."""

    step: Annotated[float, Field(gt=0)] = 1.0
    """Distance between the thresholds that are tried."""


class FitThreshold:
    """Works in the folder it is given; the files are hashed, and the provenance written, by mhe."""

    Options = FitOptions
    name = "example-fit"
    version = "1"

    def __init__(self, options: FitOptions) -> None:
        self._step = options.step

    def run(self, job: RecipeJob) -> RecipeResult:
        start = time.perf_counter()
        folder = job.folder / "model"
        if not job.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
            write_threshold(folder, self._fit(job))
        return RecipeResult(
            model_folder=folder,
            parameters=1,
            trainable_parameters=1,
            backend="example",
            seconds=time.perf_counter() - start,
            device="cpu",
        )

    def _fit(self, job: RecipeJob) -> float:
        lesson = [(brightness(example.request.images[0]), example.answer == "yes") for example in job.train]
        tried = [number * self._step for number in range(int(256 / self._step))]
        right = []
        for threshold in tried:
            right.append(sum((level >= threshold) == is_bright for level, is_bright in lesson))
            job.report("fit", {"step": len(right), "steps": len(tried), "accuracy": right[-1] / len(lesson)})
        best = [threshold for threshold, count in zip(tried, right, strict=True) if count == max(right)]
        return best[len(best) // 2]
