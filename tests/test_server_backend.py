"""The backend `server` against a real HTTP server on this machine that misbehaves on order."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest

from chat_server import MODEL, Reply, answer, completion, events, question_of, refusal, serving, usual_answer
from command import mhe
from mhe import (
    BackendContext,
    BytesSource,
    Generation,
    Image,
    Message,
    MheError,
    ModelSpec,
    ModelUnusableError,
    Request,
    Response,
    UserError,
    open_image,
)
from mhe.testing import HOSTILE_TEXTS, check_backend, toy_requests
from mhe_vllm.server import ServerBackend
from mhe_vllm.server_connection import seconds_asked
from mhe_vllm.server_options import ServerOptions
from mhe_vllm.server_threads import answer_at_once

KEY = "sk-very-secret-0123456789abcdef"
QUICK = {"first_wait": 0.01, "retries": 3, "connect_timeout": 5.0, "read_timeout": 20.0}
DAMAGED = Image("broken", BytesSource(b"this is no image"))


@pytest.fixture(autouse=True)
def no_key_of_the_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def open_backend(server, tmp_path, *, location=MODEL, **options):
    context = BackendContext(offline=True, cache_dir=tmp_path, training_samples=list)
    chosen = ServerOptions(**{"url": server.url, **QUICK, **options})
    backend = ServerBackend(ModelSpec(name="m", backend="server", location=location), chosen, context)
    backend.load()
    return backend


def ask(server, tmp_path, requests, **options):
    """Responses by sample, each given once."""
    backend = open_backend(server, tmp_path, **options)
    try:
        found = list(backend.generate(requests, [request.sample_id for request in requests]))
    finally:
        backend.close()
    named = {response.sample_id: response for response in found}
    assert len(named) == len(found) == len(requests)
    return named


def until_it_ends(backend, requests):
    """Responses, and the error that ended them."""
    kept = []
    try:
        for response in backend.generate(requests, [request.sample_id for request in requests]):
            kept.append(response)  # noqa: PERF402 - what came before the error counts
    except ModelUnusableError as error:
        return kept, str(error)
    finally:
        backend.close()
    raise AssertionError("nothing ended the run")


def different(n, **changes):
    """Requests whose texts tell them apart."""
    return [
        replace(request, messages=(Message("user", f"question {number}?", images=1),), **changes)
        for number, request in enumerate(toy_requests(n))
    ]


def about(number):
    """Behaviour of one of the `different` requests only."""

    def decorate(reply):
        return lambda _, body: reply() if question_of(body) == f"question {number}?" else None

    return decorate


# ---------------------------------------------------------------- what is sent


def test_it_keeps_what_every_backend_must(tmp_path):
    with serving() as server:
        spec = ModelSpec(name="m", backend="server", location=MODEL)
        responses = check_backend(ServerBackend, options={"url": server.url, **QUICK}, model=spec)
        assert [response.prompt_tokens for response in responses] == [21] * 8


def pixels_of(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    with PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        return np.asarray(picture)


def encoded(picture, kind, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return BytesSource(buffer.getvalue())


def test_images_arrive_with_the_pixels_of_evaluation(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    deep = PIL.Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    images = (
        Image("jpeg", encoded(PIL.Image.fromarray(noise), "JPEG", exif=turned)),
        Image("deep", encoded(deep, "PNG")),
        Image("clear", encoded(PIL.Image.fromarray(np.dstack([noise, noise[..., 0]])), "PNG")),
        Image("resized", encoded(PIL.Image.fromarray(noise), "PNG"), resize=(20, 30)),
    )
    messages = (
        Message("system", "You read scans."),
        Message("user", "What are these?", images=3),
        Message("assistant", "Scans."),
        Message("user", "And this?", images=1),
    )
    request = Request("s", messages, images, Generation(), seed=1, digest="d")
    with serving() as server:
        assert ask(server, tmp_path, [request])["s"].error is None
        sent = server.asked[0].body["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert (sent[0]["content"], sent[2]["content"]) == ("You read scans.", "Scans.")
    assert [part["type"] for part in sent[1]["content"]] == ["image_url"] * 3 + ["text"]
    assert sent[1]["content"][-1]["text"] == "What are these?"
    assert sent[3]["content"][-1]["text"] == "And this?"
    urls = [part["image_url"]["url"] for turn in (sent[1], sent[3]) for part in turn["content"][:-1]]
    assert len(urls) == len(images)
    for url, image in zip(urls, images, strict=True):
        expected = np.asarray(open_image(image))
        assert np.array_equal(pixels_of(url), expected), image.id
    assert pixels_of(urls[0]).shape == (53, 37, 3)
    assert pixels_of(urls[3]).shape == (30, 20, 3)


def test_a_damaged_image_is_never_sent(tmp_path):
    first, *others = different(4)
    with serving() as server:
        found = ask(server, tmp_path, [replace(first, images=(DAMAGED,)), *others])
        assert len(server.asked) == 3
    assert found[first.sample_id].error.kind == "data"
    assert all(found[request.sample_id].error is None for request in others)


def test_settings_of_generation_are_sent(tmp_path):
    greedy = Generation(max_new_tokens=7, stop=("\n", "###"))
    sampled = Generation(max_new_tokens=9000, temperature=0.7, top_p=0.9)
    with serving() as server:
        ask(server, tmp_path, different(1, generation=greedy), extra_body={"min_p": 0.1})
        ask(server, tmp_path, different(3, generation=sampled), limit_field="max_completion_tokens")
        first, *others = [asked.body for asked in server.asked]
    assert {name: value for name, value in first.items() if name != "messages"} == {
        "model": MODEL, "max_tokens": 7, "temperature": 0.0, "stop": ["\n", "###"], "min_p": 0.1,
    }  # fmt: skip
    seeds = {request.seed for request in different(3)}
    assert len(seeds) == 3
    assert {body["seed"] for body in others} == seeds
    for body in others:
        # No more than the model's context, which ends an answer anyway.
        assert (body["temperature"], body["top_p"], body["max_completion_tokens"]) == (0.7, 0.9, 4096)
        assert "max_tokens" not in body


def test_a_checkpoints_own_taste_is_not_left_to_vllm(tmp_path):
    with serving() as server:
        server.models[0]["owned_by"] = "vllm"
        ask(server, tmp_path, different(1))
        body = server.asked[0].body
    assert (body["repetition_penalty"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)


def test_hostile_texts_go_and_come_unchanged(tmp_path):
    requests = [
        replace(request, messages=(Message("user", text, images=1),))
        for request, text in zip(toy_requests(len(HOSTILE_TEXTS)), HOSTILE_TEXTS, strict=True)
    ]
    with serving(lambda _, body: answer(question_of(body))) as server:
        found = ask(server, tmp_path, requests)
    for request, text in zip(requests, HOSTILE_TEXTS, strict=True):
        assert found[request.sample_id].text == text.strip()


# ---------------------------------------------------------------- many at once


def test_requests_are_under_way_at_once_and_no_more_than_asked_for(tmp_path):
    together = threading.Barrier(8)

    def behave(number, body):
        together.wait(timeout=10)

    with serving(behave) as server:
        found = ask(server, tmp_path, different(24), concurrency=8)
        assert all(response.error is None for response in found.values())
        assert server.most_under_way == 8
        # One more asks for the models.
        assert server.connections <= 9 + 1, "connections are used again"


def test_answers_do_not_depend_on_the_order_in_which_they_come(tmp_path):
    def behave(number, body):
        time.sleep((number * 7 % 5) * 0.004)

    requests = different(40)
    with serving(behave) as server:
        one = ask(server, tmp_path, requests, concurrency=1)
        at_once = ask(server, tmp_path, list(reversed(requests)), concurrency=16)
    texts = {name: response.text for name, response in one.items()}
    assert len(set(texts.values())) == 40
    assert {name: response.text for name, response in at_once.items()} == texts


def test_a_run_that_is_ended_does_not_wait_for_a_slow_server(tmp_path):
    release = threading.Event()

    def behave(number, body):
        if number:
            release.wait(20)

    with serving(behave) as server:
        backend = open_backend(server, tmp_path, concurrency=4)
        requests = different(8)
        stream = backend.generate(requests, [request.sample_id for request in requests])
        next(stream)
        start = time.monotonic()
        stream.close()
        backend.close()
        assert time.monotonic() - start < 2
        release.set()


def test_what_is_answered_when_another_fails_is_given_first():
    first, fails, last = different(3)
    both = threading.Barrier(3)

    def work(request, stop):
        if request is not first:
            both.wait(10)
        if request is fails:
            raise RuntimeError("no more")
        if request is last:
            time.sleep(0.2)
        return Response(request.sample_id, text="yes")

    stream = answer_at_once([first, fails, last], work, 3)
    assert next(stream).sample_id == first.sample_id
    both.wait(10)
    time.sleep(0.5)
    assert next(stream).sample_id == last.sample_id
    with pytest.raises(RuntimeError, match="no more"):
        next(stream)


# ---------------------------------------------------------------- answers that are none

HALF = json.dumps(completion("yes")).encode()[:-40]
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


# ---------------------------------------------------------------- streams


def test_a_stream_gives_the_same_texts_and_the_time_to_the_first_token(tmp_path):
    requests = different(8)

    def behave(number, body):
        return events(list(usual_answer(body)), pause=0.02) if body.get("stream") else None

    with serving(behave) as server:
        plain = ask(server, tmp_path, requests)
        streamed = ask(server, tmp_path, requests, stream=True)
        assert server.asked[-1].body["stream_options"] == {"include_usage": True}
    for name, response in streamed.items():
        assert response.text == plain[name].text
        assert (response.prompt_tokens, response.generated_tokens, response.finish_reason) == (21, 8, "stop")
        # The first token comes after the first event, the last of them eight pauses later.
        assert 0.015 < response.first_token_seconds < response.seconds - 0.1
        assert plain[name].first_token_seconds is None


BROKEN_STREAMS = {
    "an error": (events(["ye"], last=['{"error": {"message": "out of memory"}}', "[DONE]"]), "out of memory"),
    "cut": (events(["ye"], last=[]), "before its end"),
    "half an event": (events(["ye"], last=['{"mod']), "not whole JSON"),
    "no stream": (answer("yes"), "text/event-stream"),
}


@pytest.mark.parametrize("case", BROKEN_STREAMS)
def test_a_stream_that_is_not_whole_is_an_error_of_the_system(tmp_path, case):
    reply, says = BROKEN_STREAMS[case]
    requests = different(3)
    with serving(about(0)(lambda: reply)) as server:
        found = ask(server, tmp_path, requests, stream=True)
    error = found[requests[0].sample_id].error
    assert error.kind == "system"
    assert says in error.message
    assert sum(response.error is not None for response in found.values()) == 1


# ---------------------------------------------------------------- which server, which model


def test_what_the_server_tells_is_the_fingerprint(tmp_path):
    def described(server, **options):
        backend = open_backend(server, tmp_path, **options)
        backend.close()
        return backend.describe()

    with serving() as server:
        told = described(server)
        assert told.fingerprint.verified is False
        assert told.neutral_options["url"] == server.url
        assert told.neutral_options["reported"] == {
            "id": MODEL, "max_model_len": 4096, "owned_by": "us", "version": "1.2.3",
        }  # fmt: skip
        same = described(server, url=server.url + "/", concurrency=2, stream=True)
        server.models[0]["created"] = 2
        assert described(server).fingerprint == same.fingerprint == told.fingerprint
        assert same.key_options == told.key_options
        server.models.append({**server.models[0], "id": "org/other"})
        seen = [told, described(server, model="org/other")]
        server.version = {"version": "1.2.4"}
        seen.append(described(server))
        server.version = None
        seen.append(described(server))
        server.models[0]["root"] = "/models/a"
        rooted = described(server)
        seen.append(rooted)
        assert len({each.fingerprint.digest for each in seen}) == 5
        assert "version" not in rooted.neutral_options["reported"]
        assert rooted.neutral_options["reported"]["root"] == "…/a", "records hold no folders of a machine"
        assert described(server, extra_body={"top_k": 5}).key_options != told.key_options


def test_a_model_that_is_not_listed_is_told_with_what_is(tmp_path):
    with serving() as server:
        server.models.append({"id": "llava-7b"})
        with pytest.raises(ModelUnusableError) as raised:
            open_backend(server, tmp_path, location="org/med-vml")
        assert not server.asked
    text = str(raised.value)
    for part in ("'org/med-vml'", "Did you mean 'org/med-vlm'", "llava-7b", "--set backend.model=org/med-vlm"):
        assert part in text


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(401, "no key"), "export OPENAI_API_KEY"),
        (Reply(b"<html>", content_type="text/html"), "with its /v1"),
        (Reply(b'{"data": 3}'), "with its /v1"),
        (Reply(b"nowhere", 404), "backend.url"),
        (Reply(b"starting", 503), "4 times"),
    ],
)
def test_a_server_that_lists_no_models_is_no_such_server(tmp_path, reply, says):
    with serving() as server:
        server.models_reply = reply
        with pytest.raises(ModelUnusableError, match=says):
            open_backend(server, tmp_path)


def test_a_server_that_is_not_there_is_told_at_once(tmp_path):
    with serving() as server:
        pass
    start = time.monotonic()
    with pytest.raises(ModelUnusableError, match=r"no server answers at http://127.0.0.1:\d+/v1 .*backend.url"):
        open_backend(server, tmp_path, first_wait=5.0)
    assert time.monotonic() - start < 3


def test_an_address_is_needed_and_may_come_from_the_environment(tmp_path, monkeypatch):
    with serving() as server:
        with pytest.raises(ModelUnusableError, match=r"backend.url=.*OPENAI_BASE_URL"):
            open_backend(server, tmp_path, url=None)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert open_backend(server, tmp_path, url=None).describe().neutral_options["url"] == server.url


@pytest.mark.parametrize(
    "options",
    [
        {"url": f"http://me:{KEY}@127.0.0.1:1/v1"},
        {"url": f"http://127.0.0.1:1/v1?api-key={KEY}"},
        {"url": f"ftp:{KEY}@x"},
        {"key_variable": KEY},
        {"key_variable": "NOT_SET_ANYWHERE"},
    ],
)
def test_what_could_not_be_kept_secret_is_refused_without_showing_it(tmp_path, options):
    with serving() as server:
        with pytest.raises(UserError) as raised:
            open_backend(server, tmp_path, **options)
        assert not server.places
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"{KEY}é", f"{KEY} {KEY}"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving() as server, pytest.raises(UserError, match="OPENAI_API_KEY") as raised:
        open_backend(server, tmp_path)
    assert KEY not in str(raised.value)


def test_options_do_not_decide_what_the_task_decides():
    with pytest.raises(ValueError, match=r"temperature.*generation"):
        ServerOptions(extra_body={"temperature": 1})


# ---------------------------------------------------------------- whole runs


def evaluate(tmp_path, server, *extra, limit=12, **environment):
    return mhe(
        "eval", "--model", MODEL, "--backend", "server", "--task", "phantom-vqa", "--limit", limit,
        "--set", f"backend.url={server.url}", "--set", "backend.first_wait=0.02", "--json", *extra,
        cwd=tmp_path, **environment,
    )  # fmt: skip


def lines_of(run, tmp_path):
    return [json.loads(line) for line in (tmp_path / run["folder"] / "samples.jsonl").read_text().splitlines()]


def written(tmp_path):
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    return files


@pytest.mark.parametrize("kind", ["answers", "echoes", "refuses"])
def test_the_key_is_sent_and_written_nowhere(tmp_path, kind):
    def behave(number, body):
        if kind == "echoes" and number % 3 == 0:
            return answer(f"your key is {KEY}")
        if kind == "echoes" and number % 3 == 1:
            return refusal(500, "x" * 190 + KEY)
        if kind == "refuses" and number >= 2:
            return refusal(401, f"Incorrect API key provided: {KEY}")
        return None

    with serving(behave) as server:
        done = evaluate(tmp_path, server, "--set", "backend.retries=0", OPENAI_API_KEY=KEY)
        assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert done.code == {"answers": 0, "echoes": 3, "refuses": 3}[kind], done.err
    assert KEY[:20] not in done.out + done.err
    for path in written(tmp_path):
        assert KEY[:20].encode() not in path.read_bytes(), path
    (run,) = done.document["runs"]
    assert run["backend"]["neutral_options"]["key_variable"] == "OPENAI_API_KEY"
    if kind == "echoes":
        assert any("API key" in line["error"]["message"] for line in lines_of(run, tmp_path) if "error" in line)


def test_a_server_that_dies_leaves_a_partial_run_that_goes_on(tmp_path):
    limit, quick = 30, ("--reuse-unverified", "--set", "backend.give_up_after=3", "--set", "backend.concurrency=4")

    def behave(number, body):
        if number == 12:
            threading.Thread(target=server.die).start()
        if number >= 12:
            time.sleep(2)

    with serving(behave) as server:
        first = evaluate(tmp_path, server, *quick, limit=limit)
        port = server.port
    assert first.code == 3, first.err
    (run,) = first.document["runs"]
    assert run["status"] == "partial"
    assert "3 times in a row" in run["warnings"][0]
    before = lines_of(run, tmp_path)
    assert 8 <= len(before) <= 12
    assert not any("error" in line for line in before)

    gone = evaluate(tmp_path, server, *quick, limit=limit)
    assert gone.code == 2
    assert "no server answers" in gone.err

    with serving(port=port) as again:
        second = evaluate(tmp_path, again, *quick, limit=limit)
        assert len(again.asked) == limit - len(before), "what is answered is not asked again"
        third = evaluate(tmp_path, again, *quick, limit=limit)
        assert len(again.asked) == limit - len(before)
    assert (second.code, third.code) == (0, 0), second.err
    (resumed,), (done,) = second.document["runs"], third.document["runs"]
    assert resumed["folder"] == run["folder"]
    assert done["was_done"]
    lines = lines_of(resumed, tmp_path)
    assert lines[: len(before)] == before
    assert len({line["id"] for line in lines}) == len(lines) == limit


def test_errors_of_the_system_are_tried_again_at_the_next_start(tmp_path):
    with serving(lambda number, _: Reply(HALF) if number < 3 else None) as server:
        first = evaluate(tmp_path, server, "--reuse-unverified")
        assert first.code == 3
        assert first.document["runs"][0]["counts"]["system_errors"] == 3
        second = evaluate(tmp_path, server, "--reuse-unverified")
        assert len(server.asked) == 12 + 3
    assert second.code == 0
    assert second.document["runs"][0]["counts"]["answered"] == 12


def test_a_run_is_used_again_only_where_that_is_asked_for(tmp_path):
    with serving() as server:
        runs = [evaluate(tmp_path, server, limit=3).document["runs"][0] for _ in range(2)]
        assert len(server.asked) == 6
    assert runs[0]["run_key"] != runs[1]["run_key"]
    assert [run["model"]["verified"] for run in runs] == [False, False]
    assert runs[0]["model"]["fingerprint"] == runs[1]["model"]["fingerprint"]


def test_mistakes_are_told_with_what_to_type_next(tmp_path):
    with serving() as server:
        done = evaluate(tmp_path, server, "--set", "backend.model=med-vlm")
        wrong = evaluate(tmp_path, server, "--set", "backend.concurency=3")
    assert (done.code, wrong.code) == (2, 2)
    assert "Did you mean 'org/med-vlm'" in done.document["error"]["message"]
    assert "concurrency" in wrong.document["error"]["message"]
    assert not list(tmp_path.rglob("run.json"))


def test_nothing_imports_httpx_before_a_server_is_asked(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys\nfrom mhe.cli.main import main\n"
        "try: main(['show', 'backends', 'server'])\nexcept SystemExit as done: code = done.code\n"
        "import mhe_vllm.server\n"
        "sys.exit(code or ('httpx' in sys.modules) * 5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "key_variable" in done.stdout


def test_without_httpx_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "httpx", None)
    with serving() as server, pytest.raises(MheError, match=r"mhe\[server\]"):
        open_backend(server, tmp_path)
