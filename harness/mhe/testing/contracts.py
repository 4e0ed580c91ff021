"""What every backend, engine, reader, profile and recipe must keep, as functions that a plugin's own tests call.

Each raises `AssertionError` with the promise that was broken. They hold a plugin to what `mhe.protocols` says, not
to what its numbers should be.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from mhe.documents.model import ModelSpec
from mhe.errors import DataMissingError
from mhe.protocols import AnswerProfile, BackendContext, ReadContext
from mhe.testing.scripted import ScriptedBackend, ScriptedOptions
from mhe.testing.toys import toy_requests, toy_samples
from mhe.values import Response, Sample

if TYPE_CHECKING:
    from mhe.protocols import (
        BackendFactory,
        DatasetReader,
        DatasetReaderFactory,
        Engine,
        ModelBackend,
        Profile,
        RecipeFactory,
    )
    from mhe.values import Request

Options = Mapping[str, object]
HEX_SHA256 = 64


def require(condition: bool, promise: str) -> None:
    """Raise `AssertionError` with the promise, also where Python drops `assert`."""
    if not condition:
        raise AssertionError(promise)


def checked_options(factory: object, options: Options | None) -> BaseModel:
    """The factory's own `Options`, made from `options`; unknown ones must be refused."""
    model = getattr(factory, "Options", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise AssertionError("a factory has `Options`, a pydantic model")  # noqa: TRY004 - a broken promise like others
    try:
        model.model_validate({**(options or {}), "no_such_option": 1})
    except ValidationError as error:
        kinds = {item["type"] for item in error.errors()}
        require("extra_forbidden" in kinds, "Options refuses unknown keys: derive it from mhe.Part")
    else:
        raise AssertionError("Options refuses unknown keys: derive it from mhe.Part")
    return model.model_validate(options or {})


# ---------------------------------------------------------------- backends


def check_backend(
    factory: BackendFactory,
    *,
    options: Options | None = None,
    model: ModelSpec | None = None,
    requests: Sequence[Request] | None = None,
    training_samples: Sequence[Sample] | None = None,
) -> list[Response]:
    """Describe, load, answer all, answer a few, close. Returns the responses to all requests, in their order.

    Answers must not depend on which other requests are pending: a run that was killed is resumed with few of them.
    """
    chosen = checked_options(factory, options)
    spec = model or ModelSpec(name="toy", backend="toy", location="toy")
    asked = list(requests) if requests is not None else toy_requests(8)
    known = list(training_samples) if training_samples is not None else toy_samples(16, first=1000)
    with TemporaryDirectory() as cache:
        context = BackendContext(offline=True, cache_dir=Path(cache), training_samples=lambda: known)
        backend = factory(spec, chosen, context)
        try:
            before = _checked_description(backend)
            backend.load()
            require(_checked_description(backend) == before, "describe() has one key before and after load()")
            whole = _answers(backend, asked, [request.sample_id for request in asked])
            few = [request.sample_id for request in asked[1::3]]
            part = _answers(backend, asked, few)
            for name in few:
                require(part[name].text == whole[name].text, f"{name} is answered alike, whatever else is pending")
            require(not _answers(backend, asked, []), "generate() answers nothing where nothing is pending")
            json.dumps(dict(backend.usage()))
        finally:
            backend.close()
    return [whole[request.sample_id] for request in asked]


def _checked_description(backend: ModelBackend) -> tuple[str, str, str, str]:
    told = backend.describe()
    require(bool(told.name) and bool(told.version), "describe() names the backend and its version")
    require(bool(told.fingerprint.digest), "describe() has a fingerprint of the weights")
    keys = json.dumps(dict(told.key_options), sort_keys=True)
    json.dumps(dict(told.neutral_options))
    both = set(told.key_options) & set(told.neutral_options)
    require(not both, f"an option is answer-neutral or in the run key, never both: {sorted(both)}")
    return told.name, told.version, told.fingerprint.digest, keys


def _answers(backend: ModelBackend, requests: Sequence[Request], pending: Sequence[str]) -> dict[str, Response]:
    found = list(backend.generate(requests, frozenset(pending)))
    counted = Counter(response.sample_id for response in found)
    doubled = [name for name, number in counted.items() if number > 1]
    require(not doubled, f"generate() answers each request once; twice: {doubled}")
    strangers, missing = set(counted) - set(pending), set(pending) - set(counted)
    require(not strangers, f"generate() answers pending requests only; others: {sorted(strangers)}")
    require(not missing, f"generate() answers every pending request; missing: {sorted(missing)}")
    for response in found:
        require(
            (response.text is None) != (response.error is None),
            f"a response has a text or an error: {response.sample_id} has both or neither",
        )
    return {response.sample_id: response for response in found}


# ---------------------------------------------------------------- engines


def check_engine(load: Callable[[], Engine]) -> None:
    """Run the scripted backend through a fresh engine: every answer once, usage, closing also after an error."""
    requests = toy_requests(10)
    pending = {request.sample_id for request in requests[2:]}
    engine = load()
    require(bool(engine.name), "an engine has a name")
    try:
        engine.describe()
    except RuntimeError:
        pass
    else:
        raise AssertionError("describe() raises RuntimeError before run() has loaded a backend")
    answered = [r.sample_id for r in engine.run(_scripted(ScriptedOptions(batch_size=3)), requests, pending)]
    require(sorted(answered) == sorted(pending), "run() yields each pending request's response once")
    require(engine.describe().name == "scripted", "describe() is the backend's own after run()")
    require(engine.usage().get("load_seconds", -1) >= 0, "usage() has load_seconds")

    engine = load()
    kept: list[Response] = []
    try:
        for response in engine.run(_scripted(ScriptedOptions(raise_after=4, batch_size=2)), requests, pending):
            kept.append(response)  # noqa: PERF402 - what came before the error counts
    except RuntimeError:
        require(len(kept) == 4, "answers given before a backend's error are yielded")
    else:
        raise AssertionError("run() passes a backend's error on")


def _scripted(options: ScriptedOptions) -> Callable[[], ModelBackend]:
    spec = ModelSpec(name="scripted", backend="scripted", location="options")
    context = BackendContext(offline=True, cache_dir=Path(), training_samples=list)
    return lambda: ScriptedBackend(spec, options, context)


# ---------------------------------------------------------------- readers


def check_reader(
    factory: DatasetReaderFactory,
    *,
    options: Options | None = None,
    split: str = "test",
    data_dir: Path | None = None,
    is_generated: bool = False,
) -> list[Sample]:
    """Read a split twice, cut, and without images. Returns its samples.

    `is_generated` says that the reader makes its samples and needs no data; any other must raise
    `DataMissingError` where it has no folder and may not use the hub.
    """
    chosen = checked_options(factory, options)

    def read(*, limit: int | None = None, need_images: bool = True, folder: Path | None = data_dir) -> list[Sample]:
        reader: DatasetReader = factory(chosen)
        context = ReadContext(split=split, data_dir=folder, offline=True, limit=limit, need_images=need_images)
        found = reader.read(context)
        require(isinstance(found, Iterator), "read() yields samples one by one")
        return list(found)

    samples = read()
    require(bool(samples), f"the split {split!r} holds samples")
    ids = [sample.id for sample in samples]
    require(len(set(ids)) == len(ids), "sample ids are unique in a split")
    for sample in samples[:50]:
        _check_sample(sample)
    require(ids == [sample.id for sample in read()], "a split reads in the same order every time")
    limited = [sample.id for sample in read(limit=2)]
    require(limited[:2] == ids[:2], "`limit` is a beginning of the split")
    require(ids == [sample.id for sample in read(need_images=False)], "need_images=False gives the same samples")
    if not is_generated:
        try:
            read(folder=None)
        except DataMissingError as error:
            require(len(str(error)) > 40, "DataMissingError says what to download and where to put it")
        else:
            raise AssertionError("without a folder and offline, read() raises DataMissingError")
    return samples


def _check_sample(sample: Sample) -> None:
    require(bool(sample.id) and isinstance(sample.id, str), f"a sample has an id: {sample!r}")
    texts = list(sample.references)
    require(bool(texts) and all(isinstance(text, str) for text in texts), f"{sample.id}: references are texts")
    require(sample.answer_type in (None, "closed", "open"), f"{sample.id}: answer_type is closed, open or None")
    for image in sample.images:
        again = pickle.loads(pickle.dumps(image))  # noqa: S301 - our own bytes
        digest = image.source.digest()
        require(len(digest) == HEX_SHA256, f"{sample.id}: an image's digest is a hex SHA-256")
        require(again.source.digest() == digest, f"{sample.id}: an image's source survives pickling")


# ---------------------------------------------------------------- profiles and recipes

TEXTS = (
    "Yes, there is.",
    "",
    "  two\nlines ",
    "no",
    "3.5 x 2-cm",
    "\u202eright-to-left",
    "héma\u0301tome",
    "肺",
    "a" * 5000,
)


def check_profile(profile: Profile) -> None:
    """Cleaning keeps number and order of texts and looks at each alone; credit lies between 0 and 1."""
    require(bool(profile.name) and bool(profile.version), "a profile has a name and a version")
    require(profile.kind in ("caption", "vqa"), f"kind is caption or vqa, not {profile.kind!r}")
    require(bool(profile.source), "a profile names the paper or program whose rules it follows")
    require(not isinstance(profile.defects, str), "defects is a sequence of texts")
    together = profile.clean(TEXTS)
    require(len(together) == len(TEXTS), "clean() returns as many texts as it is given")
    for text, cleaned in zip(TEXTS, together, strict=True):
        require(profile.clean([text]) == [cleaned], f"clean() looks at each text alone: {text[:30]!r}")
        require(cleaned == " ".join(cleaned.split()), f"clean() separates tokens by single blanks: {text[:30]!r}")
    require(profile.clean([]) == [], "clean() of nothing is nothing")
    if profile.kind != "vqa":
        return
    require(isinstance(profile, AnswerProfile), "a profile of kind vqa has question_type() and credit()")
    assert isinstance(profile, AnswerProfile)
    for sample in toy_samples(8):
        require(profile.question_type(sample) in ("closed", "open"), "question_type() is closed or open")
        require(profile.credit(sample.references[0], sample) == 1.0, f"the reference itself is right: {sample.id}")
        for text in TEXTS:
            require(0.0 <= profile.credit(text, sample) <= 1.0, f"credit() lies between 0 and 1: {text[:30]!r}")


def check_recipe(factory: RecipeFactory, *, options: Options | None = None) -> None:
    """Options, name and version; nothing is trained."""
    recipe = factory(checked_options(factory, options))
    require(bool(recipe.name) and bool(recipe.version), "a recipe has a name and a version")
    require(callable(getattr(recipe, "run", None)), "a recipe has run(job)")
