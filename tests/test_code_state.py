"""What a record says of the code that made it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mhe import environment

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    for name in ("harness/mhe/environment.py", "plugins/one.py", "leaderboards/board.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "harness/mhe/environment.py"))
    return tmp_path


def test_code_is_changed_where_code_is(checkout):
    found = environment.describe_code()
    assert (found.commit, found.dirty) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "leaderboards/board.yaml").write_text("2\n", encoding="utf-8")
    assert environment.describe_code().dirty is False, "an entry on a board changes no run"
    (checkout / "plugins/one.py").write_text("2\n", encoding="utf-8")
    assert environment.describe_code().dirty is True


def test_an_installed_copy_has_no_commit(checkout, monkeypatch):
    inside = checkout / "site-packages/mhe/environment.py"
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(inside))
    assert environment.describe_code().commit is None
