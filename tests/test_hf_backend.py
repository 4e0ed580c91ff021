"""Backend `hf`: the same answers whatever the batch, every bad sample recorded, its neighbours answered."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from mhe import BackendContext, BytesSource, FileSource, Generation, Image, Message, ModelUnusableError, Request
from mhe.documents.model import ModelSpec

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mhe_hf import HfBackend, HfOptions  # noqa: E402

from tests import hf_models  # noqa: E402
