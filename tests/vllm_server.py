"""vLLM's own OpenAI server on this machine, in processes of its own, for the tests that run vLLM."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mhe import ModelSpec, Request, Response
from mhe_vllm.server import ServerBackend
from mhe_vllm.server_options import ServerOptions
from vllm_models import by_sample, context

START_SECONDS = 300
SERVED = ("tiny-llava", "tiny-qwen2-vl")
"""Twins whose random form is served for the whole session, and compared over all backends."""
CONTEXT = 256


class VllmServer:
    """It starts while others answer; who asks it waits for it. Its process group can be killed and started again."""

    def __init__(self, folder: Path, place: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.folder = folder
        self.name = folder.name
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._log = place / f"server-{self._port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder),
                    "--served-model-name", self.name, "--host", "127.0.0.1", "--port", str(self._port),
                    "--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT),
                    "--limit-mm-per-prompt", '{"image": 1}',
                ],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **environment},
            )  # fmt: skip

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/models"):
                return
            time.sleep(0.25)
        raise AssertionError(f"not ready in {START_SECONDS} s: {self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def opened(self, place: Path, **options: object) -> Iterator[ServerBackend]:
        """The backend `server`, which asks it."""
        self.wait()
        spec = ModelSpec(name="m", backend="server", location=self.name)
        backend = ServerBackend(spec, ServerOptions(url=self.url, **options), context(place))
        try:
            backend.load()
            yield backend
        finally:
            backend.close()

    def answers(self, requests: list[Request], place: Path, **options: object) -> dict[str, Response]:
        """What the backend `server` hears from it."""
        with self.opened(place, **options) as backend:
            return by_sample(backend.generate(requests, [request.sample_id for request in requests]))
