"""Backends `vllm`, vLLM's offline engine in this process, and `server`, any OpenAI-compatible endpoint.

This module is the plugin and stays light; prompts are rendered by the public names of `mhe_hf`, so that every backend
asks the same text (docs/decisions/0004-one-rendering-of-prompts.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import BackendFactory


def _load_vllm() -> BackendFactory:
    from mhe_vllm.backend import VllmBackend

    return VllmBackend


def _load_server() -> BackendFactory:
    from mhe_vllm.server import ServerBackend

    return ServerBackend


@hookimpl
def register_backends() -> Sequence[Provider[BackendFactory]]:
    """The backends `vllm` and `server`."""
    return [
        Provider(
            name="vllm",
            summary="vLLM in this process: continuous batching, prefix caching, LoRA on the language model",
            load=_load_vllm,
            extra="vllm",
        ),
        Provider(
            name="server",
            summary="any OpenAI-compatible server, asked over HTTP: --set backend.url=http://HOST:PORT/v1",
            load=_load_server,
            extra="server",
        ),
    ]
