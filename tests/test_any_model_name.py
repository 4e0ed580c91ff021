"""`--model` with a name that only the backend knows, and how such runs are said to go on."""

from __future__ import annotations

import pytest

from chat_server import Reply, answer, serving
from command import mhe
from mhe import open_catalog
from mhe.errors import UnknownNameError
from mhe.model_names import resolve_model

NAME = "gpt-4o:latest"


def test_a_name_that_nobody_registered_goes_to_the_server(tmp_path):
    with serving(lambda number, body: answer("yes", model=body["model"])) as server:
        server.models = [{"id": NAME, "object": "model"}]
        done = mhe(
            "eval", "--model", NAME, "--backend", "server", "--task", "phantom-vqa", "--limit", 3, "--json",
            "--set", f"backend.url={server.url}", cwd=tmp_path,
        )  # fmt: skip
        assert [asked.body["model"] for asked in server.asked] == [NAME] * 3
    assert done.code == 0, done.err
    (run,) = done.document["runs"]
    assert run["model"]["name"] == run["model"]["location"] == NAME


def test_only_where_the_backend_takes_any():
    catalog = open_catalog()
    assert resolve_model(NAME, catalog, backend="server").location == NAME
    for backend in ("hf", None):
        with pytest.raises(UnknownNameError, match="no model named 'gpt-4o:latest'"):
            resolve_model(NAME, catalog, backend=backend)
    with pytest.raises(UnknownNameError):
        resolve_model(" ", catalog, backend="server")
    # What is registered stands for what it is registered as.
    assert resolve_model("llava-1.5-7b", catalog, backend="server").location == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("reuses", [True, False])
def test_how_to_go_on_is_told_as_it_is(tmp_path, reuses):
    refuses = Reply(b'{"error": {"message": "no such key"}}', 401)
    with serving(lambda number, body: answer("yes", model=body["model"]) if number < 2 else refuses) as server:
        server.models = [{"id": NAME, "object": "model"}]
        done = mhe(
            "eval", "--model", NAME, "--backend", "server", "--task", "phantom-vqa", "--limit", 6, "--json",
            "--set", f"backend.url={server.url}", "--set", "backend.concurrency=1",
            *(["--reuse-unverified"] if reuses else []), cwd=tmp_path,
        )  # fmt: skip
    assert done.code == 3, done.err
    (warning,) = done.document["runs"][0]["warnings"]
    assert ("Run the same command again to go on." in warning) == reuses
    assert ("starts from nothing; a run goes on only with --reuse-unverified" in warning) != reuses
