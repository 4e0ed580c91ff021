"""What the README shows works: its plugin, its commands, its links."""

from __future__ import annotations

import json
import re
import shlex
import types
from pathlib import Path

import click
import pytest

import tune_cases
from mhe.cli.main import COMMANDS, cli
from mhe.testing import check_metric

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {language} block"
    return found


def test_the_plugin_of_the_readme_fulfils_the_contract_of_metrics():
    (code,) = blocks("python")
    module = types.ModuleType("my_metrics")
    exec(compile(code, "README.md", "exec"), vars(module))
    (provider,) = module.register_metrics()
    check_metric(provider.load())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/boards.md", "docs/tuning.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    for link in links:
        assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"
    assert links or page != "README.md"


def test_every_command_shown_parses():
    """Each `mhe …` line names an existing command, and options that it has."""
    seen = 0
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part, comments=True)
                if words[:1] != ["mhe"]:
                    continue
                command: click.Command = cli
                context = click.Context(cli, info_name="mhe")
                rest = words[1:]
                while isinstance(command, click.Group) and rest:
                    found = command.get_command(context, rest[0])
                    assert found is not None, line
                    command, rest = found, rest[1:]
                known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
                for word in rest:
                    if word.startswith("--"):
                        assert word.split("=")[0] in known, f"{line}: {word}"
                seen += 1
    assert seen >= 12


def test_make_targets_shown_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`?make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= targets
    for target in targets - {"and"}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_commands_of_the_table_are_all_mentioned():
    text = README + (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"mhe {name}" in text


def test_the_tuning_shown_works(tmp_path, monkeypatch):
    """The README's own lines, on a small release and for two steps."""
    pytest.importorskip("peft")
    release = tune_cases.write_release(tmp_path / "vqa_rad", images=6)
    monkeypatch.setenv("MHE_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("MHE_RUNS_DIR", str(tmp_path / "runs"))
    lines = [line for block in blocks("sh") for line in block.splitlines() if "my-lora" in line]
    assert [line.split()[1] for line in lines] == ["tune", "eval"]
    more = {"tune": ["--offline", "--set", "max_steps=2"], "eval": ["--offline", "--json"]}
    for line in lines:
        words = shlex.split(line.replace("~/data/vqa_rad", str(release)))[1:]
        assert cli.main([*words, *more[words[0]]], prog_name="mhe", standalone_mode=False) == 0, line
    (record,) = (tmp_path / "runs" / "vqa-rad").glob("my-lora*/*/run.json")
    run = json.loads(record.read_text(encoding="utf-8"))
    assert run["model"]["lineage"][0]["recipe"] == "lora"
    assert run["status"] == "complete"
