"""The backend `server` against a real HTTP server on this machine: what is sent, many at once, streams, which model."""

from __future__ import annotations

import base64
import io
import threading
import time
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from chat_server import MODEL, Reply, answer, events, question_of, refusal, serving, usual_answer
from mhe import (
    BytesSource,
    Generation,
    Image,
    Message,
    ModelSpec,
    ModelUnusableError,
    Request,
    Response,
    SampleModelError,
    SampleSystemError,
    ScoresTokens,
    UserError,
    open_image,
)
from mhe.testing import HOSTILE_TEXTS, check_backend, toy_requests
from mhe_vllm.server import ServerBackend
from mhe_vllm.server_options import ServerOptions
from mhe_vllm.server_threads import answer_at_once
from server_cases import DAMAGED, KEY, QUICK, about, ask, different, open_backend

# ---------------------------------------------------------------- what is sent


class AnswersAlone(ServerBackend):
    """Without the chances of tokens, which only vLLM's server tells."""

    next_tokens = None


def test_it_keeps_what_every_backend_must(tmp_path):
    with serving() as server:
        spec = ModelSpec(name="m", backend="server", location=MODEL)
        responses = check_backend(AnswersAlone, options={"url": server.url, **QUICK}, model=spec)
        assert [response.prompt_tokens for response in responses] == [21] * 8


def test_chances_of_tokens_are_asked_of_vllm_alone(tmp_path):
    with serving() as server:
        backend = open_backend(server, tmp_path)
        try:
            assert isinstance(backend, ScoresTokens)
            with pytest.raises(SampleModelError, match="does not tell tokens by their numbers"):
                backend.next_tokens(toy_requests(1)[0], (), 3)
        finally:
            backend.close()
        assert [place for place in server.places if "chat" in place] == []


def test_a_server_that_keeps_the_chances_to_itself_is_told(tmp_path):
    with serving() as server:
        server.models[0]["owned_by"] = "vllm"
        backend = open_backend(server, tmp_path)
        try:
            with pytest.raises(SampleSystemError, match="was asked for log-probabilities and token numbers"):
                backend.next_tokens(toy_requests(1)[0], (), 3)
        finally:
            backend.close()


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
