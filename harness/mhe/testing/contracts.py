"""What every reader, profile, tagger and recipe must keep, as functions that a plugin's own tests call.

Each raises `AssertionError` with the promise that was broken. They hold a plugin to what `mhe.protocols` says, not
to what its numbers should be.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from mhe.catalog import FAMILY, NAME, family_of
from mhe.errors import DataMissingError, SampleDataError
from mhe.protocols import AnswerProfile, ReadContext, RecipeResult
from mhe.testing.toys import HOSTILE_TEXTS, toy_samples
from mhe.values import Image, Sample

if TYPE_CHECKING:
    from mhe.entity_taggers import TaggerFactory
    from mhe.protocols import DatasetReader, DatasetReaderFactory, Profile, RecipeFactory, RecipeJob

Options = Mapping[str, object]
HEX_SHA256 = 64

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")


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
    chosen = model.model_validate(options or {})
    # Options are written into run keys and records.
    json.dumps(chosen.model_dump(mode="json"))
    return chosen


def check_name(name: object, version: object, noun: str) -> None:
    """A name that can be typed, alone or as `family:NAME`, and a version: a text without blanks."""
    fits = isinstance(name, str) and NAME.fullmatch((family_of(name)[0] or name).removesuffix(FAMILY)) is not None
    require(fits, f"a {noun} has a name of lower case, digits, dots and dashes, not {name!r}")
    require(
        isinstance(version, str) and version != "" and version.split() == [version],
        f"a {noun} has a version, a text without blanks, not {version!r}",
    )


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
    `DataMissingError` where it has no folder, or an empty one, and may not use the hub. The first images are opened.
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
    for sample in samples:
        _check_sample(sample)
    ids = [sample.id for sample in samples]
    require(len(set(ids)) == len(ids), "sample ids are unique in a split")
    require(ids == [sample.id for sample in read()], "a split reads in the same order every time")
    some = max(1, len(ids) // 2)
    limited = [sample.id for sample in read(limit=some)]
    require(limited[:some] == ids[:some], f"with limit={some}, the first {some} samples are those of the whole split")
    require(ids == [sample.id for sample in read(need_images=False)], "need_images=False gives the same samples")
    _check_images(samples)
    if not is_generated:
        with TemporaryDirectory() as empty:
            for folder in (None, Path(empty)):
                try:
                    read(folder=folder)
                except DataMissingError as error:
                    require(len(str(error)) > 40, "DataMissingError says what to download and where to put it")
                else:
                    raise AssertionError("without data and offline, read() raises DataMissingError")
    return samples


def _check_sample(sample: object) -> None:
    if not isinstance(sample, Sample):
        raise AssertionError(f"read() yields Sample, not {type(sample).__name__}")  # noqa: TRY004 - a broken promise like others
    require(bool(sample.id) and isinstance(sample.id, str), f"a sample has an id: {sample!r}")
    texts = sample.references
    fine = isinstance(texts, tuple) and bool(texts) and all(isinstance(text, str) for text in texts)
    require(fine, f"{sample.id}: references are a tuple of texts, never empty")
    require(sample.question is None or bool(sample.question.strip()), f"{sample.id}: a question is None or has words")
    require(sample.answer_type in (None, "closed", "open"), f"{sample.id}: answer_type is closed, open or None")
    strange = [pair for pair in sample.groups.items() if not all(isinstance(text, str) for text in pair)]
    require(not strange, f"{sample.id}: groups map texts to texts, not {strange}")
    fine = isinstance(sample.images, tuple) and all(isinstance(image, Image) for image in sample.images)
    require(fine, f"{sample.id}: images are a tuple of mhe.Image")


def _check_images(samples: list[Sample]) -> None:
    images = {image.id: image for sample in samples for image in sample.images}
    for image in list(images.values())[:5]:
        again = pickle.loads(pickle.dumps(image))  # noqa: S301 - our own bytes
        digest = image.source.digest()
        is_hex = len(digest) == HEX_SHA256 and set(digest) <= set("0123456789abcdef")
        require(is_hex, f"image {image.id}: the digest is a hex SHA-256, not {digest!r}")
        require(again.source.digest() == digest, f"image {image.id}: its source survives pickling")
        try:
            require(bool(again.source.read()), f"image {image.id}: there are bytes")
        except SampleDataError as error:
            raise AssertionError(f"image {image.id}: it can be read ({error})") from error


# ---------------------------------------------------------------- profiles and recipes


def check_profile(profile: Profile) -> None:
    """Cleaning keeps number and order of texts and looks at each alone; credit lies between 0 and 1.

    Raises `AssertionError` with the promise that was broken; `MetricUnavailableError` passes through.
    """
    check_name(profile.name, profile.version, "profile")
    require(profile.kind in ("caption", "vqa"), f"kind is caption or vqa, not {profile.kind!r}")
    require(bool(profile.source), "a profile names the paper or program whose rules it follows")
    require(not isinstance(profile.defects, str), "defects is a sequence of texts")
    _check_usual_scoring(profile)
    texts = ["Yes, there is.", *HOSTILE_TEXTS, "3.5 x 2-cm"]
    together = profile.clean(texts)
    require(isinstance(together, list), f"clean() returns a list, not {type(together).__name__}")
    require(len(together) == len(texts), f"clean() returns as many texts as it is given, not {len(together)}")
    for text, cleaned in zip(texts, together, strict=True):
        require(isinstance(cleaned, str), f"clean() returns texts, not {type(cleaned).__name__}: {text[:30]!r}")
        require(
            cleaned == " ".join(cleaned.split()),
            f"clean() separates tokens by single blanks: {text[:30]!r} became {cleaned[:40]!r}",
        )
    # All at once, in two orders: one call a text would start Java for each.
    require(profile.clean(texts[::-1]) == together[::-1], "clean() looks at each text alone, whatever its neighbours")
    require(profile.clean(texts[:1]) == together[:1], "clean() of one text is as among others")
    require(profile.clean([]) == [], "clean() of nothing is nothing")
    if profile.kind == "vqa":
        _check_credit(profile)


def _check_credit(profile: Profile) -> None:
    if not isinstance(profile, AnswerProfile):
        raise AssertionError("a profile of kind vqa has question_type() and credit()")  # noqa: TRY004 - a broken promise like others
    for sample in toy_samples(8):
        require(profile.question_type(sample) in ("closed", "open"), "question_type() is closed or open")
        right = profile.credit(sample.references[0], sample)
        wrong = profile.credit("nothing of the kind", sample)
        require(right > 0 and right >= wrong, f"the reference itself earns most: {right}, a wrong answer {wrong}")
        for text in HOSTILE_TEXTS:
            require(0.0 <= profile.credit(text, sample) <= 1.0, f"credit() lies between 0 and 1: {text[:30]!r}")


def _check_usual_scoring(profile: Profile) -> None:
    usual = getattr(profile, "usual_metrics", ())
    fine = not isinstance(usual, str) and all(isinstance(name, str) and NAME.match(name) for name in usual)
    require(fine, f"usual_metrics is a sequence of metric names, not {usual!r}")
    is_default = getattr(profile, "is_default", False)
    require(isinstance(is_default, bool), f"is_default is True or False, not {is_default!r}")
    require(bool(usual) or not is_default, "the default profile of a kind names its usual_metrics")


def check_tagger(factory: TaggerFactory, *, options: Options | None = None) -> list[list[tuple[int, int]]]:
    """Spans lie inside their texts, whatever these are and in whatever order. Returns those of hostile texts.

    Raises `AssertionError` with the promise that was broken; `MetricUnavailableError` passes through.
    """
    tagger = factory(checked_options(factory, options))
    check_name(tagger.name, tagger.version, "tagger")
    texts = ["A large pleural effusion.", *HOSTILE_TEXTS, "no effusion"]
    found = tagger.spans(texts)
    require(isinstance(found, list) and len(found) == len(texts), "spans() returns one list for each text")
    for text, spans in zip(texts, found, strict=True):
        told = f"{text[:30]!r}: {spans!r}"[:200]
        inside = all(0 <= start < end <= len(text) for start, end in spans)
        require(inside, f"a span is start and end, in characters of the text, and not empty: {told}")
        require(list(spans) == sorted(spans), f"spans are ordered: {told}")
    require(tagger.spans(texts[::-1]) == found[::-1], "spans() looks at each text alone, whatever its neighbours")
    require(tagger.spans([]) == [], "spans() of nothing is nothing")
    resources = tagger.resources
    fine = isinstance(resources, Mapping) and all(isinstance(x, str) for pair in resources.items() for x in pair)
    require(fine, f"resources map names to digests, not {resources!r}")
    return found


def check_recipe(
    factory: RecipeFactory, *, options: Options | None = None, job: RecipeJob | None = None
) -> RecipeResult | None:
    """Options, name and version; with a `job` a dry run of it as well, whose result is returned. Nothing is trained.

    Raises `AssertionError` with the promise that was broken.
    """
    recipe = factory(checked_options(factory, options))
    check_name(recipe.name, recipe.version, "recipe")
    require(callable(getattr(recipe, "run", None)), "a recipe has run(job)")
    if job is None:
        return None
    before = set(job.folder.rglob("*"))
    result: object = recipe.run(replace(job, dry_run=True))
    if not isinstance(result, RecipeResult):
        raise AssertionError(f"run() returns a RecipeResult, not {type(result).__name__}")  # noqa: TRY004 - a broken promise like others
    shape = job.folder / "model"
    strays = [path for path in set(job.folder.rglob("*")) - before if path != shape and shape not in path.parents]
    require(not strays, "a dry run writes nothing into its folder but the shape of the result, in `model`")
    require(
        not any(path.suffix in WEIGHT_FILES for path in set(job.folder.rglob("*")) - before),
        "the shape of a result has no weights",
    )
    for name, (total, trainable) in {
        "the model": (result.parameters, result.trainable_parameters),
        **result.modules,
    }.items():
        require(0 <= trainable <= total, f"{trainable} of {total} parameters of {name} can be trainable")
    return result
