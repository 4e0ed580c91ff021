"""Backend `threshold`: a model of one parameter, which really looks at the image."""

from __future__ import annotations

import json
import time
from pathlib import Path

from mhe import BackendDescription, Failure, ModelUnusableError, Part, Response, SampleError, fingerprint_folder, open_image


class ThresholdOptions(Part):
    invert: bool = False
    """Answer the other way round."""


class ThresholdBackend:
    Options = ThresholdOptions

    def __init__(self, model, options, context):
        del context
        self._folder = Path(model.location)
        self._options = options
        self._threshold = None

    def describe(self):
        if not (self._folder / "config.json").is_file():
            raise ModelUnusableError(f"{self._folder}: no config.json with a threshold here.")
        return BackendDescription(
            name="threshold",
            version="0.3.0",
            fingerprint=fingerprint_folder(self._folder),
            key_options={"invert": self._options.invert},
            device="cpu",
            parameters=1,
        )

    def load(self):
        self._threshold = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))["threshold"]

    def generate(self, requests, pending):
        for request in requests:
            if request.sample_id not in pending:
                continue
            start = time.perf_counter()
            try:
                is_bright = brightness(request.images[0]) >= self._threshold
            except SampleError as error:
                yield Response(request.sample_id, error=Failure(error.kind, str(error)))
                continue
            text = "yes, it is" if is_bright != self._options.invert else "no"
            yield Response(request.sample_id, text, finish_reason="stop", seconds=time.perf_counter() - start)

    def usage(self):
        return {}

    def close(self):
        self._threshold = None


def brightness(image):
    """Mean grey level, 0 to 255."""
    picture = open_image(image).convert("L")
    values = picture.tobytes()
    return sum(values) / len(values)
