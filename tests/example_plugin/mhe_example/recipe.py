"""Recipe `fit-threshold`: tries every threshold, keeps the one that errs least on the training answers."""

from __future__ import annotations

import json
import time
from typing import Annotated

from mhe import Part, RecipeResult
from pydantic import Field

from mhe_example.backend import brightness


class FitOptions(Part):
    step: Annotated[int, Field(ge=1, le=64)] = 1
    """Distance of the thresholds that are tried."""


class FitThreshold:
    Options = FitOptions
    name = "fit-threshold"
    version = "1"

    def __init__(self, options):
        self._options = options

    def run(self, job):
        if job.dry_run:
            return RecipeResult(model_folder=job.folder, parameters=1, trainable_parameters=1, backend="threshold")
        start = time.perf_counter()
        pairs = [(brightness(example.request.images[0]), example.answer.lower() == "yes") for example in job.train]
        candidates = range(0, 257, self._options.step)
        errors = {limit: sum((shade >= limit) != is_bright for shade, is_bright in pairs) for limit in candidates}
        best = min(errors, key=lambda limit: (errors[limit], limit))
        job.report("train", {"step": len(errors), "steps": len(errors), "loss": errors[best] / len(pairs)})
        folder = job.folder / "model"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"threshold": best}) + "\n", encoding="utf-8")
        return RecipeResult(
            model_folder=folder,
            parameters=1,
            trainable_parameters=1,
            backend="threshold",
            history=[{"step": 1.0, "loss": errors[best] / len(pairs)}],
            seconds=time.perf_counter() - start,
        )
