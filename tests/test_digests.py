from __future__ import annotations

import os

from mhe.digests import bytes_digest, digest_of, file_digest


def test_the_order_of_keys_does_not_matter_and_values_do():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    assert len(digest_of("\ud800 lone surrogate")) == 64


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    assert file_digest(path) == bytes_digest(b"first")
    path.write_bytes(b"other")
    assert file_digest(path) == bytes_digest(b"other"), "same size, rewritten at once"


def test_a_kept_digest_is_used_unless_fresh_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("mhe.digests.SETTLED_NANOSECONDS", -1)
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    digest = file_digest(path)
    stat = path.stat()
    # The one change that times and size cannot show: written in place, clock turned back. ctime still tells.
    with path.open("r+b") as stream:
        stream.write(b"FIRST")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(path) != digest
    assert file_digest(path, fresh=True) == bytes_digest(b"FIRST")


def test_an_unusable_cache_costs_time_only(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MHE_CACHE_DIR", str(blocked / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    assert file_digest(path) == bytes_digest(b"x")
