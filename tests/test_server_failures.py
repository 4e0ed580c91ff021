"""The backend `server` against a real HTTP server that misbehaves on order: what is no answer, and trying again."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest

from chat_server import MODEL, Reply, answer, completion, question_of, refusal, serving
from mhe import (
    ModelUnusableError,
)
from mhe_vllm.server_connection import seconds_asked
from server_cases import HALF, about, ask, different, open_backend, until_it_ends

# ---------------------------------------------------------------- answers that are none

MALFORMED = {
    "half a JSON": (Reply(HALF), "not whole JSON"),
    "nothing": (Reply(b""), "nothing"),
    "blanks": (Reply(b" \n "), "empty"),
    "a page": (Reply(b"<html>Bad gateway</html>", content_type="text/html"), "text/html"),
    "a list": (Reply(b"[1, 2]"), "no JSON object"),
    "no choices": (answer("yes", choices=[]), "without choices"),
    "choices of another kind": (answer("yes", choices="yes"), "without choices"),
    "a choice of another kind": (answer("yes", choices=["yes"]), "no object"),
    "no text": (answer(None), "no text"),
    "text of another kind": (answer(["yes"]), "no text"),
    "no name": (answer("yes", model=...), "name its model"),
    "no end": (answer("yes", finish=None), "None"),
    "aborted": (answer("yes", finish="abort"), "abort"),
    "deep": (Reply(b"[" * 200_000), "not whole JSON"),
    "not packed": (Reply(b"{}", headers={"Content-Encoding": "gzip"}), "unpacked"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_whole_answer_costs_its_sample_and_says_what_came(tmp_path, case):
    reply, says = MALFORMED[case]
    requests = different(5)
    with serving(about(2)(lambda: reply)) as server:
        found = ask(server, tmp_path, requests)
        assert len(server.asked) == 5, "it is tried again at the next start, not now"
    error = found[requests[2].sample_id].error
    assert error.kind == "system"
    assert says in error.message
    assert len(error.message) < 500
    for request in requests[:2] + requests[3:]:
        assert found[request.sample_id].error is None


REFUSED = {
    "too long": (refusal(400, "This model's maximum context length is 256 tokens"), "beyond the model's context"),
    "too long by code": (refusal(400, "no", "context_length_exceeded"), "beyond the model's context"),
    "older vLLM": (Reply(b'{"object": "error", "message": "the prompt is too long to fit into the model"}', 400),
                   "beyond the model's context"),
    "image": (refusal(400, "cannot identify image file"), "refuses the image (status 400): cannot identify image file"),
    "too large": (Reply(b"", 413, "text/plain"), "status 413"),
    "validation": (Reply(b'{"detail": [{"msg": "bad role"}]}', 422), "bad role"),
    "filtered": (answer("x", finish="content_filter"), "content filter"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_model_refuses_is_the_samples_error_and_is_not_asked_again(tmp_path, case):
    reply, says = REFUSED[case]
    requests = different(5)
    with serving(about(1)(lambda: reply)) as server:
        found = ask(server, tmp_path, requests)
        assert len(server.asked) == 5
    error = found[requests[1].sample_id].error
    assert error.kind == "model"
    assert says in error.message
    assert sum(response.error is not None for response in found.values()) == 1


ENDING = {
    "key": (refusal(401, "Incorrect API key provided"), ["status 401", "OPENAI_API_KEY is not set", "key_variable"]),
    "forbidden": (refusal(403, "no"), ["status 403"]),
    "credit": (refusal(429, "You exceeded your quota", "insufficient_quota"), ["no credit"]),
    "no model": (refusal(404, f"The model `{MODEL}` does not exist."), ["has no model 'org/med-vlm'", "backend.model"]),
    "no place": (Reply(b'{"detail": "Not Found"}', 404), ["backend.url"]),
    "moved": (Reply(b"", 308, headers={"Location": "https://elsewhere/v1"}), ["https://elsewhere/v1", "backend.url"]),
    "text model": (refusal(400, "org/med-vlm is not a multimodal model"), ["takes no image", "limit-mm-per-prompt"]),
    "field": (refusal(400, "Unsupported parameter: 'max_tokens'", "unsupported_parameter"), ["backend.limit_field"]),
    "another model": (answer("yes", model="org/other"), ["'org/other' answered", "answers_as=org/other"]),
    "much later": (refusal(429, "slow down", Retry_After="7200"), ["7200 s", "longest_wait"]),
}


@pytest.mark.parametrize("case", ENDING)
def test_what_every_sample_would_meet_ends_the_run_and_keeps_what_is_answered(tmp_path, case):
    reply, says = ENDING[case]
    requests = different(20)
    with serving(lambda number, _: reply if number >= 6 else None) as server:
        backend = open_backend(server, tmp_path, concurrency=2)
        kept, said = until_it_ends(backend, requests)
        assert len(server.asked) <= 8
    assert len(kept) in (5, 6)
    assert all(response.error is None for response in kept)
    for text in says:
        assert text in said


def test_an_alias_may_answer_under_its_full_name(tmp_path):
    with serving(lambda *_: answer("yes", model="org/med-vlm-2026")) as server:
        found = ask(server, tmp_path, different(3), answers_as="org/med-vlm-2026")
    assert {response.text for response in found.values()} == {"yes"}


# ---------------------------------------------------------------- trying again


def test_retry_after_is_honoured_by_everyone(tmp_path):
    def behave(number, body):
        return refusal(429, "slow down", Retry_After="1") if number == 3 else None

    with serving(behave) as server:
        found = ask(server, tmp_path, different(12), concurrency=1)
        times = [asked.at for asked in server.asked]
    assert all(response.error is None for response in found.values())
    assert len(times) == 13
    assert 1.0 <= times[4] - times[3] < 5


def test_retry_after_is_read_in_all_its_forms():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert seconds_asked("1.5", now) == 1.5
    assert seconds_asked(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert seconds_asked(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0
    assert seconds_asked("-3") == 0
    for nothing in ("", "soon", "inf", "nan", "Mon, 99 Foo"):
        assert seconds_asked(nothing) is None, nothing


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_failure_in_passing_is_tried_again(tmp_path, status):
    tries = {}

    def behave(number, body):
        name = question_of(body)
        tries[name] = tries.get(name, 0) + 1
        return refusal(status, "busy") if tries[name] <= 3 else None

    with serving(behave) as server:
        found = ask(server, tmp_path, different(4), retries=3)
    assert all(response.error is None for response in found.values())
    assert set(tries.values()) == {4}


def test_a_failure_to_the_last_is_an_error_of_the_system(tmp_path):
    requests = different(4)
    with serving(about(0)(lambda: refusal(500, "EngineCore encountered an issue"))) as server:
        found = ask(server, tmp_path, requests, retries=2)
        assert len(server.asked) == 3 + 3
    error = found[requests[0].sample_id].error
    assert error.kind == "system"
    assert "3 times" in error.message
    assert "status 500: EngineCore encountered an issue" in error.message
    assert sum(response.error is not None for response in found.values()) == 1


def test_waits_grow(tmp_path):
    with serving(lambda *_: refusal(503, "loading")) as server:
        ask(server, tmp_path, different(1), retries=4, first_wait=0.1)
        times = [asked.at for asked in server.asked]
    waits = [after - before for before, after in pairwise(times)]
    for number, wait in enumerate(waits):
        assert 0.05 * 2**number <= wait < 0.1 * 2**number + 2


def test_a_connection_that_breaks_in_an_answer_is_tried_again(tmp_path):
    whole = json.dumps(completion("yes")).encode()
    broken = []

    def behave(number, body):
        if number == 1:
            broken.append(number)
            return Reply(whole[:50], length=len(whole))
        return None

    with serving(behave) as server:
        found = ask(server, tmp_path, different(4), concurrency=1)
        assert len(server.asked) == 5
    assert broken
    assert all(response.error is None for response in found.values())


def test_a_slow_server_costs_its_sample_alone(tmp_path):
    whole = json.dumps(completion("yes")).encode()

    def drip():
        for place in range(len(whole)):
            yield whole[place : place + 1]
            time.sleep(0.05)

    requests = different(6)
    with serving(about(4)(lambda: Reply(drip))) as server:
        start = time.monotonic()
        found = ask(server, tmp_path, requests, read_timeout=0.6)
        assert time.monotonic() - start < 9, "pieces that come in time do not make an answer that does"
    error = found[requests[4].sample_id].error
    assert (error.kind, "0.6 s" in error.message) == ("system", True)
    assert sum(response.error is not None for response in found.values()) == 1


def test_a_server_that_is_gone_ends_the_run_after_some_tries(tmp_path):
    requests = different(40)

    def behave(number, body):
        if number == 10:
            threading.Thread(target=server.die).start()
        if number >= 10:
            time.sleep(2)

    with serving(behave) as server:
        backend = open_backend(server, tmp_path, concurrency=8, give_up_after=4, retries=50, first_wait=0.05)
        start = time.monotonic()
        kept, said = until_it_ends(backend, requests)
        # Eight connections that break at one moment are one failure: 0.05, 0.1 and 0.2 s are waited.
        assert 0.15 < time.monotonic() - start < 10
    for part in ("4 times in a row", "Start the server again", "--reuse-unverified"):
        assert part in said
    assert 1 <= len(kept) <= 10
    assert all(response.error is None for response in kept)


def test_another_model_after_an_interruption_is_seen(tmp_path):
    def behave(number, body):
        if number == 2:
            server.models[0]["root"] = "another checkpoint"
            return Reply(b"{", length=99)
        return None

    with serving(behave) as server:
        backend = open_backend(server, tmp_path, concurrency=1)
        requests = different(6)
        stream = backend.generate(requests, [request.sample_id for request in requests])
        assert [next(stream).error, next(stream).error] == [None, None]
        with pytest.raises(ModelUnusableError, match="another checkpoint"):
            next(stream)
        backend.close()
