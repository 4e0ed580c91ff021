"""`mhe.testing` itself: good things pass, and each broken promise is caught by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mhe.testing
from mhe import (
    BackendContext,
    BytesSource,
    Fingerprint,
    Image,
    MetricValue,
    ModelSpec,
    ModelUnusableError,
    Part,
    Response,
    Sample,
    SampleDataError,
    TokenChance,
    open_image,
)
from mhe.testing import (
    HOSTILE_TEXTS,
    ScriptedBackend,
    ScriptedOptions,
    ToyProfile,
    ToyReader,
    check_backend,
    check_engine,
    check_metric,
    check_profile,
    check_reader,
    check_recipe,
    tiny_png,
    toy_cases,
    toy_requests,
    toy_samples,
    toy_task,
)

README = Path(__file__).parents[1] / "README.md"
MODEL = ModelSpec(name="scripted", backend="scripted", location="options")


class NoOptions(Part):
    pass


def opened(**options):
    context = BackendContext(offline=True, cache_dir=Path(), training_samples=list)
    return ScriptedBackend(MODEL, ScriptedOptions(**options), context)


def answers(backend, requests):
    backend.load()
    return list(backend.generate(requests, {request.sample_id for request in requests}))


def test_the_public_names_are_sorted_exist_and_cost_nothing():
    assert mhe.testing.__all__ == sorted(mhe.testing.__all__)
    assert set(mhe.testing._HOME_OF) == set(mhe.testing.__all__)
    for name in mhe.testing.__all__:
        assert getattr(mhe.testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mhe.testing.nonsense
    code = "import sys, mhe.testing, mhe.testing.plugin; print(sorted({'numpy', 'PIL', 'pytest'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------- the scripted backend


def test_scripted_answers_come_from_where_they_are_written(tmp_path):
    requests = toy_requests(4)
    file = tmp_path / "answers.json"
    file.write_text(json.dumps({"toy-1": "from a file", "toy-2": "from a file"}))
    found = answers(opened(answer="else", answers={"toy-2": "given"}, answers_file=file), requests)
    assert [response.text for response in found] == ["else", "from a file", "given", "else"]
    lines = tmp_path / "answers.jsonl"
    lines.write_text('{"id": "toy-0", "prediction": "a line"}\n')
    assert answers(opened(answers_file=lines), requests)[0].text == "a line"
    assert answers(opened(echo=True), requests)[0].text == requests[0].messages[-1].text


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"id": 1}', None], ids=repr)
def test_scripted_says_what_is_wrong_with_its_file(tmp_path, content):
    file = tmp_path / "answers.jsonl"
    if content is not None:
        file.write_text(content)
    backend = opened(answers_file=file)
    with pytest.raises(ModelUnusableError, match=re.escape(str(file))):
        backend.describe()


def test_scripted_fails_where_it_is_told_to():
    requests = toy_requests(6)
    backend = opened(fail_on={"toy-1": "model"}, raise_after=3)
    stream = backend.generate(requests, {request.sample_id for request in requests})
    found = [next(stream) for _ in range(3)]
    assert found[1].error.kind == "model"
    with pytest.raises(RuntimeError, match="after 3 answers"):
        next(stream)
    assert [request.sample_id for request in backend.history] == ["toy-0", "toy-1", "toy-2"]


def test_scripted_opens_images_where_it_is_told_to():
    good, bad = toy_requests(2)
    bad = replace(bad, images=(Image("bad", BytesSource(b"no image")),))
    found = answers(opened(open_images=True), [good, bad])
    assert found[0].text == "yes"
    assert found[1].error.kind == "data"
    assert answers(opened(), [good, bad])[1].text == "yes"


def test_scripted_has_a_key_of_its_answers_and_of_nothing_else():
    base = opened().describe()
    assert opened(order="reverse", batch_size=1, open_images=True).describe().fingerprint == base.fingerprint
    assert opened(answer="no").describe().fingerprint != base.fingerprint
    assert opened(answers={"toy-1": "yes"}).describe().fingerprint != base.fingerprint
    for order in ("forward", "reverse", "shuffled"):
        found = answers(opened(order=order), toy_requests(9))
        assert sorted(response.sample_id for response in found) == sorted(f"toy-{n}" for n in range(9))
        assert (found[0].sample_id == "toy-0") == (order == "forward")


# ---------------------------------------------------------------- toys


def test_toys_are_whole():
    for kind in ("vqa", "caption"):
        samples = toy_samples(9, kind)
        assert len({sample.id for sample in samples}) == 9
        assert open_image(samples[0].images[0]).size == (16, 16)
        assert toy_task(kind).kind == kind
        assert len(toy_requests(9, kind)) == len(toy_cases(9, kind)) == 9
    contents = {tiny_png(number) for number in (0, 1, 255, 256, 257, 500_000)}
    assert len(contents) == 6
    assert toy_task(version=3, groups=["modality"]).groups == ("modality",)
    with pytest.raises(ValueError, match="surplus"):
        toy_task(surplus=1)


def test_splits_of_the_toy_reader_share_no_image():
    digests = [
        {
            image.source.digest()
            for sample in check_reader(ToyReader, split=split, is_generated=True)
            for image in sample.images
        }
        for split in ("train", "validation", "test")
    ]
    assert not digests[0] & digests[1]
    assert not digests[0] & digests[2]
    assert not digests[1] & digests[2]


# ---------------------------------------------------------------- broken promises of backends


def with_changes(**changes):
    return type("Changed", (ScriptedBackend,), changes)


def doubled(self, requests, pending):
    for response in ScriptedBackend.generate(self, requests, pending):
        yield response
        yield response


def unasked(self, requests, pending):
    return ScriptedBackend.generate(self, requests, {request.sample_id for request in requests})


def lazy(self, requests, pending):
    return iter(list(ScriptedBackend.generate(self, requests, pending))[1:])


def silent(self, requests, pending):
    return (Response(request.sample_id) for request in requests if request.sample_id in pending)


def neighbourly(self, requests, pending):
    for response in ScriptedBackend.generate(self, requests, pending):
        yield replace(response, text=f"{len(pending)}")


def fragile(self, requests, pending):
    for request in requests:
        if request.sample_id in pending:
            open_image(request.images[0])
            yield Response(request.sample_id, text="yes")


def changing(self):
    told = ScriptedBackend.describe(self)
    return replace(told, fingerprint=Fingerprint(str(id(self)), verified=True))


def loading_changes(self):
    told = ScriptedBackend.describe(self)
    return replace(told, key_options={"loaded": "load" in self.events})


def in_both(self):
    told = ScriptedBackend.describe(self)
    return replace(told, key_options={"batch_size": 3})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"generate": doubled}, "answers each request once"),
        ({"generate": unasked}, "answers pending requests only"),
        ({"generate": lazy}, "answers every pending request"),
        ({"generate": silent}, "a text or an error"),
        ({"generate": neighbourly}, "answered alike, whatever else is pending"),
        ({"describe": changing}, "says the same of the same model"),
        ({"describe": loading_changes}, "one key before and after load"),
        ({"describe": in_both}, "never both"),
        ({"describe": lambda self: {"name": "x"}}, "returns a BackendDescription, not dict"),
        ({"usage": lambda self: {"speed": 1.0}}, "figures that somebody reads"),
        ({"usage": lambda self: {"batch_size": float("nan")}}, "a number from 0 on"),
        ({"Options": dict}, "a pydantic model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_backend_is_caught(changes, told):
    with pytest.raises(AssertionError, match=re.escape(told)):
        check_backend(with_changes(**changes), model=MODEL)


def test_a_backend_that_dies_of_one_image_is_caught():
    with pytest.raises(Exception, match="broken"):
        check_backend(with_changes(generate=fragile), model=MODEL)


def test_a_good_backend_passes_and_is_closed():
    closed = []
    factory = with_changes(close=lambda self: closed.append(1))
    assert len(check_backend(factory, options={"open_images": True}, model=MODEL)) == 8
    assert closed == [1]


def test_options_that_accept_anything_are_caught():
    from pydantic import BaseModel

    class Loose(BaseModel):
        answer: str = "yes"

    with pytest.raises(AssertionError, match="refuses unknown keys"):
        check_backend(with_changes(Options=Loose), model=MODEL)


# ---------------------------------------------------------------- broken promises of what a backend can do besides

WORDS = ((1, "yes", -0.2), (2, "no", -2.5), (3, "maybe", -4.0))
END = TokenChance(0, "</s>", -0.05, "", is_end=True)


class Telling(ScriptedBackend):
    """One word and the end, and what else it could have been."""

    def generate(self, requests, pending):
        for response in ScriptedBackend.generate(self, requests, pending):
            yield replace(response, generated_tokens=2)

    def next_tokens(self, request, before, most):
        for image in request.images:
            open_image(image)
        chances = [TokenChance(number, word, chance, word) for number, word, chance in WORDS]
        word = {number: word for number, word, _ in WORDS}[before[0]] if before else "yes"
        return [chances[:most], [replace(END, text=word)]]

    def render_prompt(self, request):
        return request.messages[0].text


def told(change):
    def next_tokens(self, request, before, most):
        return change([list(place) for place in Telling.next_tokens(self, request, before, most)], before)

    return next_tokens


def first(**changes):
    return told(lambda places, _: [[replace(places[0][0], **changes), *places[0][1:]], places[1]])


def crowded(places, before):
    return [[*places[0], TokenChance(4, "so", -9.0, "so")], places[1]]


def wavering(places, before):
    return [[replace(places[0][0], log_probability=-0.4), *places[0][1:]], places[1]] if before else places


def forgetful(places, before):
    # The first place is left out where it was forced.
    return places[1:] if before else places


def unforced(places, before):
    second = [TokenChance(4, "!", -0.3, "yes!"), replace(END, log_probability=-1.4)]
    return [places[0], second[: len(places[0])] if before else places[1]]


def blind(self, request, before, most):
    return Telling.next_tokens(self, replace(request, images=()), before, most)


def brittle(self, request, before, most):
    try:
        return Telling.next_tokens(self, request, before, most)
    except SampleDataError as error:
        raise OSError(error) from None


def rendering_changes(self, request):
    return "other" if "load" in self.events else "text"


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ({"next_tokens": told(lambda places, _: [])}, "a place for each token of the answer"),
        ({"next_tokens": told(lambda places, _: [[], places[1]])}, "tells 1 to `most` tokens a place"),
        (
            {"next_tokens": told(crowded)},
            "tells 1 to `most` tokens",
        ),
        ({"next_tokens": told(lambda places, _: places[:1])}, "each token that generate() counts"),
        ({"next_tokens": told(lambda places, _: [places[0][::-1], places[1]])}, "the likeliest first"),
        ({"next_tokens": told(lambda places, _: [places[0][:1] * 2, places[1]])}, "add up to 1 at most"),
        ({"next_tokens": first(id=2)}, "tells a token once a place"),
        ({"next_tokens": first(log_probability=0.9)}, "a natural logarithm, finite and at most 0"),
        ({"next_tokens": first(log_probability=float("nan"))}, "a natural logarithm, finite and at most 0"),
        ({"next_tokens": first(is_end=True)}, "ends where the answer does"),
        ({"next_tokens": told(lambda places, _: [places[0], [replace(END, text="no")]])}, "are the greedy answer"),
        ({"next_tokens": told(lambda places, _: [[("yes", -0.1)], places[1]])}, "tells TokenChance"),
        ({"next_tokens": told(wavering)}, "with `before` counts places"),
        ({"next_tokens": told(forgetful)}, "with `before` counts places"),
        ({"next_tokens": told(unforced)}, "goes on from `before`"),
        ({"next_tokens": brittle}, "raises SampleError for a damaged image, not OSError"),
        ({"render_prompt": lambda self, request: 1}, "returns a text, or None"),
        ({"render_prompt": rendering_changes}, "the same before and after load"),
    ],
)
def test_a_broken_ability_of_a_backend_is_caught(changes, promise):
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_backend(type("Changed", (Telling,), changes), model=MODEL)


def test_a_backend_that_tells_tokens_and_prompts_passes():
    asked = []

    class Counted(Telling):
        def next_tokens(self, request, before, most):
            asked.append((request.sample_id, tuple(before), most))
            return super().next_tokens(request, before, most)

    assert len(check_backend(Counted, model=MODEL)) == 8
    assert {before for _, before, _ in asked} == {(), (2,)}
    # One that looks at no image may answer about a damaged one.
    assert len(check_backend(type("Blind", (Telling,), {"next_tokens": blind}), model=MODEL)) == 8
    assert len(check_backend(type("Captioner", (Telling,), {"render_prompt": lambda *_: None}), model=MODEL)) == 8


# ---------------------------------------------------------------- broken promises of engines


def local():
    from mhe.engines.local import LocalEngine

    return LocalEngine


class ForgetsToClose(local()):
    def run(self, open_backend, requests, pending):
        backend = open_backend()
        backend.load()
        self._description = backend.describe()
        self._usage["load_seconds"] = 0.1
        yield from backend.generate(requests, pending)


class Swallows(local()):
    def run(self, open_backend, requests, pending):
        try:
            yield from super().run(open_backend, requests, pending)
        except RuntimeError:
            return


class Asks(local()):
    def run(self, open_backend, requests, pending):
        return super().run(open_backend, requests, {request.sample_id for request in requests})


class NoTime(local()):
    def usage(self):
        return {}


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (ForgetsToClose, "closes each backend"),
        (Swallows, "passes a backend's error on"),
        (Asks, "yields each pending request's response once"),
        (NoTime, "load_seconds"),
    ],
)
def test_a_broken_engine_is_caught(engine, told):
    with pytest.raises(AssertionError, match=told):
        check_engine(engine)


# ---------------------------------------------------------------- broken promises of metrics


class Share:
    """A good metric: the share of right answers."""

    Options = NoOptions
    name = "share"
    version = "1"
    kinds = frozenset({"vqa"})
    requires = frozenset({"references", "profile"})
    columns = ("right", "count")
    values = (MetricValue("share", "share of right answers"),)

    def __init__(self, options, context):
        pass

    def statistics(self, cases, profile):
        return np.array([[profile.credit(c.answer, c.sample), 1] for c in cases], dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums):
        right, count = sums[..., 0], sums[..., 1]
        return {"share": np.divide(right, count, out=np.full(np.shape(count), np.nan), where=count > 0)}

    def per_sample(self, statistics):
        return self.aggregate(statistics)


def metric(**changes):
    return type("Changed", (Share,), changes)


def table(function):
    return lambda self, cases, profile: function(Share.statistics(self, cases, profile), cases)


def from_sums(function):
    return lambda self, sums: {"share": function(sums)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"statistics": table(lambda rows, _: rows[:, :1])}, "has shape"),
        ({"statistics": table(lambda rows, _: rows.astype(np.float32))}, "is float64"),
        ({"statistics": table(lambda rows, _: rows / np.where(rows[:, :1] > 0, 1.0, np.nan))}, "is finite"),
        ({"statistics": table(lambda rows, _: rows + np.arange(len(rows))[:, None])}, "the order of samples"),
        ({"statistics": table(lambda rows, c: rows + (c[0].sample.id.startswith("r") if c else 0))}, "on its id"),
        ({"aggregate": from_sums(lambda sums: np.sum(sums[..., 0]) / np.sum(sums[..., 1]))}, "keeps the leading axes"),
        ({"aggregate": from_sums(lambda sums: sums[..., 0])}, "counts twice"),
        ({"aggregate": lambda self, sums: {"other": sums[..., 0]}}, "returns the declared values"),
        ({"values": (MetricValue("share", "x", floor=0.9),)}, "below its floor"),
        ({"values": (MetricValue("share", "x", ceiling=0.1),)}, "above its ceiling"),
        ({"values": (MetricValue("share", "x", higher_is_better=False),)}, "higher_is_better"),
        ({"values": (MetricValue("share", ""),)}, "has a summary"),
        ({"per_sample": lambda self, rows: {"share": np.zeros(1)}}, "one number a sample"),
        ({"per_sample": lambda self, rows: {"else": np.zeros(len(rows))}}, "values of the metric"),
        ({"kinds": {"riddle"}}, "kinds are of"),
        ({"requires": {"luck"}}, "requires is of"),
        ({"columns": ("same", "same")}, "columns are unique"),
        ({"name": "Not Typed"}, "has a name"),
        ({"version": 1}, "has a version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_metric_is_caught(changes, told):
    with pytest.raises(AssertionError, match=told):
        check_metric(metric(**changes))


def test_a_metric_that_divides_by_nothing_is_caught():
    with pytest.raises(FloatingPointError):
        check_metric(metric(aggregate=from_sums(lambda sums: sums[..., 0] / sums[..., 1])))


def test_a_good_metric_passes_with_what_must_come_out():
    assert check_metric(Share)["share"] == pytest.approx(0.25)
    check_metric(Share, ToyProfile(), expected={"share": 0.25})
    with pytest.raises(AssertionError, match=r"expected 0\.5"):
        check_metric(Share, expected={"share": 0.5})


def test_the_metric_of_the_readme_keeps_the_contract():
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "Length" in block
    ]
    names: dict = {}
    exec(code, names)
    (provided,) = names["register_metrics"]()
    values = check_metric(provided.load())
    assert values["length"] > 1


# ---------------------------------------------------------------- broken promises of profiles


def profile(**changes):
    return type("Changed", (ToyProfile,), changes)()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clean": lambda self, texts: [text.lower() for text in texts]}, "single blanks"),
        ({"clean": lambda self, texts: sorted(" ".join(text.split()) for text in texts)}, "whatever its neighbours"),
        ({"clean": lambda self, texts: [" ".join(text.split()) for text in texts if text]}, "as many texts"),
        ({"clean": lambda self, texts: (" ".join(text.split()) for text in texts)}, "returns a list"),
        ({"credit": lambda self, answer, sample: 1.0 + len(answer)}, "between 0 and 1|earns most"),
        ({"credit": lambda self, answer, sample: 0.0}, "earns most"),
        ({"question_type": lambda self, sample: "yes/no"}, "closed or open"),
        ({"question_type": property(lambda self: 1 / 0)}, "division by zero"),
        ({"source": ""}, "names the paper"),
        ({"defects": "one"}, "sequence of texts"),
        ({"version": "1 beta"}, "has a version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_profile_is_caught(changes, told):
    with pytest.raises((AssertionError, ZeroDivisionError), match=told):
        check_profile(profile(**changes))


def test_a_good_profile_passes():
    check_profile(ToyProfile())
    check_profile(ToyProfile("caption"))
    assert len(HOSTILE_TEXTS) > 8


# ---------------------------------------------------------------- broken promises of readers and recipes


def reader(change):
    """A reader whose samples go through `change(samples, context)`."""

    def read(self, context):
        yield from change(list(ToyReader.read(self, context)), context)

    return type("Changed", (ToyReader,), {"read": read})


SAMPLE = toy_samples(1)[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda samples, _: [*samples, samples[0]], "unique"),
        (lambda samples, _: [], "holds samples"),
        (lambda samples, _: [replace(SAMPLE, references=())], "never empty"),
        (lambda samples, _: [replace(SAMPLE, references="yes")], "tuple of texts"),
        (lambda samples, _: [replace(SAMPLE, question="  ")], "has words"),
        (lambda samples, _: [replace(SAMPLE, answer_type="yes/no")], "closed, open or None"),
        (lambda samples, _: [replace(SAMPLE, groups={"size": 3})], "texts to texts"),
        (lambda samples, _: [replace(SAMPLE, images=(Image("empty", BytesSource(b"")),))], "can be read"),
        (lambda samples, _: ["sample"], "yields Sample"),
        (lambda samples, context: samples[::-1] if context.limit else samples, "limit="),
        (lambda samples, context: samples if context.need_images else samples[1:], "need_images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_reader_is_caught(change, told):
    with pytest.raises(AssertionError, match=told):
        check_reader(reader(change), is_generated=True)


def test_a_reader_that_invents_data_where_there_is_none_is_caught(tmp_path):
    with pytest.raises(AssertionError, match="raises DataMissingError"):
        check_reader(ToyReader, data_dir=tmp_path)


def test_a_reader_must_yield():
    class Lists(ToyReader):
        def read(self, context):
            return [Sample("a", (), ("yes",))]

    with pytest.raises(AssertionError, match="one by one"):
        check_reader(Lists, is_generated=True)


def test_a_broken_recipe_is_caught(tmp_path):
    from mhe import InputModel, RecipeJob, RecipeResult

    class Writes:
        Options = NoOptions
        name = "writes"
        version = "1"
        trainable = 1

        def __init__(self, options):
            pass

        def run(self, job):
            (job.folder / "weights.bin").write_text("x")
            return RecipeResult(model_folder=job.folder, parameters=1, trainable_parameters=self.trainable)

    class Overcounts(Writes):
        trainable = 2

        def run(self, job):
            return RecipeResult(model_folder=job.folder, parameters=1, trainable_parameters=2)

    class Quiet(Overcounts):
        def run(self, job):
            assert job.dry_run
            return RecipeResult(model_folder=job.folder, parameters=2, trainable_parameters=1)

    class Shapes(Quiet):
        def run(self, job):
            (job.folder / "model").mkdir()
            (job.folder / "model" / "config.json").write_text("{}")
            return super().run(job)

    class Weighs(Shapes):
        def run(self, job):
            result = super().run(job)
            (job.folder / "model" / "model.safetensors").write_text("x")
            return result

    job = RecipeJob(InputModel(MODEL, "0"), {}, (), (), tmp_path, 0, lambda phase, numbers: None)
    assert check_recipe(Writes) is None, "nothing is run without a job"
    with pytest.raises(AssertionError, match="writes nothing"):
        check_recipe(Writes, job=job)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(AssertionError, match="2 of 1 parameters"):
        check_recipe(Overcounts, job=job)
    assert check_recipe(Quiet, job=job).parameters == 2
    for number, (recipe, promise) in enumerate(((Shapes, None), (Weighs, "has no weights"))):
        (tmp_path / str(number)).mkdir()
        own = replace(job, folder=tmp_path / str(number))
        if promise is None:
            assert check_recipe(recipe, job=own).parameters == 2
            continue
        with pytest.raises(AssertionError, match=promise):
            check_recipe(recipe, job=own)
