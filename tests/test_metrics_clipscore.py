"""CLIPScore against an independent computation, sample by sample; features encoded once; images of `mhe score`."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import mhe
from command import Done
from command import mhe as run_mhe
from mhe import (
    BytesSource,
    Case,
    FileSource,
    Image,
    MetricContext,
    MetricUnavailableError,
    Sample,
    UserError,
    open_image,
)
from mhe.image_folders import ImageFolder
from mhe.testing import check_metric, toy_cases
from mhe_metrics import image_features
from mhe_metrics.clipscore import ClipScore
from mhe_metrics.encoders import encoder_digest
from mhe_metrics.profiles.plain import PLAIN

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SIDE = 32
LONG = "a nodule of the left lung " * 60
ANSWERS = [
    "an axial CT of the chest",
    "",
    "左肺有结节 🫁 ±5 µm",
    LONG,
    "chest, lateral view",
    "an axial CT of the chest",
]
REFERENCES = [
    ("A CT of the chest.", "axial slice with a nodule"),
    ("no finding",),
    ("a nodule of 3.5 cm", "左肺有结节"),
    (LONG + "with an ending that is cut off",),
    ("chest, lateral view",),
    ("mri of the head",),
]


def picture(seed):
    """A PNG of twenty coloured fields."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).resize((56, 40), PIL.Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def build_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    plain = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    plain.train_from_iterator([f"a photo depicts {text}".lower() for text in (*ANSWERS[:1], *ANSWERS[4:])] * 9, trainer)
    merges = [tuple(merge) for merge in json.loads(plain.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {
        word: number for number, word in enumerate([*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_clip(folder, *, seed=7):
    """A CLIP of a few thousand random weights, as transformers publishes them."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = build_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**sizes, **end, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 24},
        vision_config={**sizes, "image_size": SIDE, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Of seed 7, under which one of the cosines below is negative."""
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads make matrices of this size slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_stores(monkeypatch):
    """Every test as a process of its own."""
    monkeypatch.setattr(image_features, "_stores", {})


@pytest.fixture
def encoded(monkeypatch):
    """Every image that is encoded, one entry an image."""
    from mhe_metrics.clip_encoder import ClipEncoder

    seen = []
    own = ClipEncoder.encode_images
    monkeypatch.setattr(
        ClipEncoder, "encode_images", lambda self, pixels: seen.extend([1] * len(pixels)) or own(self, pixels)
    )
    return seen


def make(clip, cache, **options):
    return ClipScore(ClipScore.Options(encoder=str(clip), device="cpu", **options), MetricContext(cache_dir=cache))


def make_cases(answers=ANSWERS, references=REFERENCES, images=None):
    images = images or [picture(seed % 4) for seed in range(len(answers))]
    return [
        Case(Sample(f"s{n}", (Image(f"i{n}", BytesSource(image)),), tuple(refs)), answer)
        for n, (answer, refs, image) in enumerate(zip(answers, references, images, strict=True))
    ]


def by_hand(folder, cases):
    """The formula, straight from `CLIPModel` on one sample at a time, without a batch and without our code."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def text_vector(text):
        ids = tokenizer("A photo depicts " + text, truncation=True, max_length=77, return_tensors="pt")
        assert ids["input_ids"].shape[1] <= 77
        return model.get_text_features(**ids).pooler_output[0]

    rows = []
    with torch.no_grad():
        for case in cases:
            pixels = PIL.Image.open(io.BytesIO(case.sample.images[0].source.read())).convert("RGB")
            seen = model.get_image_features(**processor(pixels, return_tensors="pt")).pooler_output[0]
            answer = text_vector(case.answer)
            score = 2.5 * max(torch.cosine_similarity(seen, answer, dim=0).item(), 0)
            texts = [
                torch.cosine_similarity(answer, text_vector(text), dim=0).item() for text in case.sample.references
            ]
            best = max(*texts, 0) if texts else None
            both = None if best is None else (2 * score * best / (score + best) if score + best else 0.0)
            rows.append((score, both))
    return rows


# ---------------------------------------------------------------- the numbers


def test_equal_to_the_formula_sample_by_sample(clip, tmp_path):
    cases = make_cases()
    metric = make(clip, tmp_path)
    rows = metric.statistics(cases, PLAIN)
    expected = by_hand(clip, cases)
    np.testing.assert_allclose(rows[:, [0, 2]], expected, rtol=0, atol=1e-6)
    assert rows[:, [1, 3]].tolist() == [[1, 1]] * len(cases)
    assert np.ptp(rows[:, 0]) > 0.1, "images and texts make a difference"
    assert len(set(rows[:, 2])) > 4
    found = metric.aggregate(rows.sum(axis=0))
    assert found["clipscore"] == pytest.approx(np.mean([score for score, _ in expected]), abs=1e-6)
    assert found["refclipscore"] == pytest.approx(np.mean([both for _, both in expected]), abs=1e-6)


def test_negative_cosines_are_zero(clip, tmp_path):
    """With one tower turned round, what was positive is negative."""
    from transformers import CLIPModel

    turned = tmp_path / "turned"
    shutil.copytree(clip, turned)
    model = CLIPModel.from_pretrained(turned)
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    model.save_pretrained(turned)
    cases = make_cases()
    straight, other = (make(folder, tmp_path).statistics(cases, PLAIN) for folder in (clip, turned))
    for rows in (straight, other):
        assert rows.min() >= 0
        assert (rows[rows[:, 0] == 0, 2] == 0).all(), "no harmonic mean with nothing"
    assert ((straight[:, 0] == 0) != (other[:, 0] == 0)).all()
    assert 0 < (straight[:, 0] == 0).sum() < len(cases)
    np.testing.assert_allclose(other[:, [0, 2]], by_hand(turned, cases), rtol=0, atol=1e-6)


def test_only_the_first_77_tokens_count(clip, tmp_path):
    image = picture(0)
    same = make_cases([LONG, LONG + "and much more"], [("x",)] * 2, [image] * 2)
    rows = make(clip, tmp_path).statistics(same, PLAIN)
    assert rows[0].tolist() == rows[1].tolist()
    from mhe_metrics.clip_encoder import ClipEncoder

    encoder = ClipEncoder(clip, device="cpu")
    tokens = encoder.tokens(LONG)
    assert (encoder.most_tokens, len(tokens)) == (77, 77)
    assert tokens[-1] == encoder.tokens("")[-1], "the end token is kept"


def test_texts_are_taken_as_they_stand_whatever_the_profile(clip, tmp_path):
    class Shouting:
        name, version, kind, source, defects = "shouting", "1", "caption", "", ()

        def clean(self, texts):
            raise AssertionError("the authors' program cleans nothing")

    rows = make(clip, tmp_path).statistics(
        make_cases(["an axial , CT", "an axial CT"], [("a",)] * 2, [picture(0)] * 2), Shouting()
    )
    assert rows[0, 0] != rows[1, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_make_no_difference(clip, tmp_path, batch_size):
    cases = make_cases()
    whole = make(clip, tmp_path / "a").statistics(cases, PLAIN)
    np.testing.assert_allclose(
        make(clip, tmp_path / "b", batch_size=batch_size).statistics(cases, PLAIN), whole, atol=1e-6
    )


def test_order_makes_no_difference(clip, tmp_path):
    cases = make_cases()
    forth = make(clip, tmp_path / "a").statistics(cases, PLAIN)
    back = make(clip, tmp_path / "b").statistics(cases[::-1], PLAIN)
    assert back[::-1].tolist() == forth.tolist()


def test_without_references_only_refclipscore_is_null(clip, tmp_path):
    metric = make(clip, tmp_path)
    cases = make_cases(references=[()] * len(ANSWERS))
    rows = metric.statistics(cases, PLAIN)
    np.testing.assert_allclose(rows[:, 0], [score for score, _ in by_hand(clip, cases)], atol=1e-6)
    found = metric.aggregate(rows.sum(axis=0))
    assert found["clipscore"] > 0
    assert np.isnan(found["refclipscore"])
    records = score_cases(cases, clip, tmp_path)
    assert [(value.name, value.value is None, value.reason is None) for value in records[0].values] == [
        ("clipscore", False, True),
        ("refclipscore", True, False),
    ]
    mixed = metric.statistics([*make_cases()[:1], *cases[1:]], PLAIN)
    assert metric.aggregate(mixed.sum(axis=0))["refclipscore"] == pytest.approx(make_row(clip, tmp_path)[2])


def make_row(clip, cache):
    return make(clip, cache).statistics(make_cases()[:1], PLAIN)[0]


def score_cases(cases, clip, cache, **changes):
    from mhe.scoring import score_cases as score
    from mhe.text_pairs import TextPairs

    return score(
        mhe.open_catalog(),
        TextPairs("test", "caption", "plain"),
        cases,
        all_samples=[case.sample for case in cases],
        metrics=["clipscore"],
        profiles=["plain"],
        run_key="run",
        cache_dir=cache,
        metric_options={"clipscore": {"encoder": str(clip), "device": "cpu"}},
        **changes,
    )


def test_the_contract_holds(clip, tmp_path):
    """Under a CLIP for which the toys' captions look like the toys' images, and no caption does not."""
    from transformers import CLIPModel

    from mhe_metrics.clip_encoder import ClipEncoder

    folder = tmp_path / "fitted"
    shutil.copytree(clip, folder)
    encoder, model = ClipEncoder(clip, device="cpu"), CLIPModel.from_pretrained(clip).eval()
    cases = toy_cases(12, "caption")
    seen = encoder.encode_images([encoder.pixels(open_image(case.sample.images[0])) for case in cases]).mean(axis=0)
    texts = sorted({text for case in cases for text in case.sample.references})
    with torch.no_grad():
        tokens = [torch.tensor([encoder.tokens(f"A photo depicts {text}")]) for text in ["", *texts]]
        hidden = torch.cat([model.text_model(input_ids=ids).pooler_output for ids in tokens])
        target = torch.tensor(seen).outer(torch.tensor([-1.0] + [1.0] * len(texts)))
        model.text_projection.weight.copy_(target @ torch.linalg.pinv(hidden.T))
    model.save_pretrained(folder)
    values = check_metric(ClipScore, PLAIN, options={"encoder": str(folder), "device": "cpu"}, cases=cases)
    assert 0 < values["refclipscore"] < 10 / 7


# ---------------------------------------------------------------- images encoded once


def test_each_distinct_image_is_encoded_once_and_kept(clip, tmp_path, encoded, monkeypatch):
    cases = make_cases()
    first = make(clip, tmp_path).statistics(cases, PLAIN)
    assert len(encoded) == 4, "six samples, four images"
    again = make(clip, tmp_path).statistics([Case(case.sample, "another model's answer") for case in cases], PLAIN)
    assert again[0, 0] != first[0, 0]
    # Another process: nothing but the file is left.
    monkeypatch.setattr(image_features, "_stores", {})
    assert make(clip, tmp_path, batch_size=3).statistics(cases, PLAIN) == pytest.approx(first, abs=1e-7)
    assert len(encoded) == 4
    make(clip, tmp_path).statistics(make_cases(images=[picture(seed) for seed in range(6)]), PLAIN)
    assert len(encoded) == 6


def test_another_encoder_has_features_of_its_own(clip, tmp_path, encoded):
    cases = make_cases()
    one = make(clip, tmp_path).statistics(cases, PLAIN)
    other = build_clip(tmp_path / "other", seed=10)
    assert np.abs(make(other, tmp_path).statistics(cases, PLAIN)[:, 0] - one[:, 0]).max() > 1e-3
    assert len(encoded) == 8


def test_a_cache_that_is_broken_or_absent_costs_time_only(clip, tmp_path, encoded):
    cases = make_cases()
    expected = make(clip, tmp_path / "fine").statistics(cases, PLAIN)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "image-features.sqlite").write_bytes(b"not a database" * 1000)
    (tmp_path / "file").write_text("in the way of a folder")
    for place in (broken, tmp_path / "file"):
        encoded.clear()
        for _ in range(2):
            assert make(clip, place).statistics(cases, PLAIN).tolist() == expected.tolist()
        assert len(encoded) == 4, "kept for this process"


def test_a_kept_vector_that_is_damaged_is_computed_again(clip, tmp_path, encoded):
    cases = make_cases()
    expected = make(clip, tmp_path).statistics(cases, PLAIN)
    with sqlite3.connect(tmp_path / "image-features.sqlite") as connection:
        (image,) = connection.execute("SELECT image FROM features LIMIT 1").fetchone()
        connection.execute("UPDATE features SET vector = ? WHERE image = ?", (b"\0" * 96, image))
    encoded.clear()
    np.testing.assert_allclose(make(clip, tmp_path).statistics(cases, PLAIN), expected, rtol=0, atol=1e-6)
    assert len(encoded) == 1


def test_what_could_be_read_is_kept_when_something_could_not(clip, tmp_path, encoded):
    cases = make_cases(images=[*(picture(seed) for seed in range(5)), b"no image"])
    with pytest.raises(
        MetricUnavailableError, match=r"1 of 6 samples have an image that cannot be read: 's5'; .*i5: not"
    ):
        make(clip, tmp_path).statistics(cases, PLAIN)
    assert len(encoded) == 5
    make(clip, tmp_path).statistics(cases[:5], PLAIN)
    assert len(encoded) == 5


def test_a_scoring_that_dies_loses_one_batch(clip, tmp_path, monkeypatch):
    from mhe_metrics.clip_encoder import ClipEncoder

    own, batches = ClipEncoder.encode_images, []

    def die_at_third(self, pixels):
        batches.append(len(pixels))
        if len(batches) == 3:
            raise SystemExit("killed")
        return own(self, pixels)

    cases = make_cases(images=[picture(seed) for seed in range(6)])
    with monkeypatch.context() as patch:
        patch.setattr(ClipEncoder, "encode_images", die_at_third)
        with pytest.raises(SystemExit):
            make(clip, tmp_path, batch_size=2).statistics(cases, PLAIN)
        # Another process: nothing but the file is left.
        patch.setattr(image_features, "_stores", {})
        make(clip, tmp_path, batch_size=2).statistics(cases, PLAIN)
    assert batches == [2, 2, 2, 2], "the third batch again, the first two never"


def test_an_image_that_changes_while_it_is_read_is_not_kept(clip, tmp_path):
    class Changing:
        digests = iter(["before", "after"])

        def read(self):
            return picture(0)

        def digest(self):
            return next(self.digests)

    case = Case(Sample("s", (Image("i", Changing()),), ("a",)), "b")
    with pytest.raises(MetricUnavailableError, match="image i: it changed while it was read"):
        make(clip, tmp_path).statistics([case], PLAIN)
    with sqlite3.connect(tmp_path / "image-features.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM features").fetchone() == (0,)


# ---------------------------------------------------------------- what cannot be computed


def test_without_an_encoder_or_images_the_reason_says_what_to_type(clip, tmp_path):
    bare = ClipScore(ClipScore.Options(), MetricContext(cache_dir=tmp_path))
    with pytest.raises(
        MetricUnavailableError, match=r"--set metrics\.clipscore\.encoder=.*openai/clip-vit-base-patch32"
    ):
        bare.statistics(make_cases(), PLAIN)
    case = make_cases()[0]
    none, two = (mhe.Case(Sample("x", case.sample.images * count, ("a",)), "b") for count in (0, 2))
    with pytest.raises(MetricUnavailableError, match=r"1 of 2 samples have no image: 'x'; .*--images FOLDER"):
        make(clip, tmp_path).statistics([case, none], PLAIN)
    with pytest.raises(MetricUnavailableError, match=r"several images.*: 'x' \(2\)"):
        make(clip, tmp_path).statistics([case, two], PLAIN)


def test_the_encoder_is_known_by_its_content(clip, tmp_path):
    assert make(clip, tmp_path).resources == {"encoder": encoder_digest(clip)}
    first = score_cases(make_cases(), clip, tmp_path)[0]
    assert first.resources == {"encoder": encoder_digest(clip)}
    copy = tmp_path / "copy"
    shutil.copytree(clip, copy)
    processor = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**processor, "image_mean": [0.1, 0.1, 0.1]}))
    other = score_cases(make_cases(), copy, tmp_path)[0]
    assert other.score_key != first.score_key
    assert other.values[0].value != first.values[0].value


def _drop_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _change(name, **changes):
    def change(folder):
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(content.get(key), dict):
                content[key].update(value)
            else:
                content[key] = value
        (folder / name).write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_drop_weights, r"not whole: 1 are missing, such as text_projection\.weight"),
        (_change("config.json", text_config={"eos_token_id": 5}), r"do not belong together: texts end in token \d+"),
        (_change("config.json", model_type="siglip"), r"of type siglip; CLIPScore takes a CLIP"),
        (_change("preprocessor_config.json", crop_size={"height": 16, "width": 16}), r"shape \(3, 16, 16\)"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
    ],
    ids=["weights", "tokenizer", "type", "processor", "configuration"],
)
def test_a_checkpoint_that_is_not_a_whole_clip_is_refused(clip, tmp_path, damage, told):
    folder = tmp_path / "damaged"
    shutil.copytree(clip, folder)
    damage(folder)
    with pytest.raises(MetricUnavailableError, match=told):
        make(folder, tmp_path).statistics(make_cases(), PLAIN)


# ---------------------------------------------------------------- mhe.score and mhe score


def test_mhe_score_takes_images_by_position_and_by_id(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    places = []
    for number, case in enumerate(make_cases()):
        places.append(tmp_path / f"{number}.png")
        places[-1].write_bytes(case.sample.images[0].source.read())
    options = {"metrics": "clipscore", "metric_options": {"clipscore": {"encoder": str(clip), "device": "cpu"}}}
    expected = np.mean(by_hand(clip, make_cases()), axis=0)
    found = mhe.score(ANSWERS, REFERENCES, images=places, **options)
    assert [found[name].value for name in ("clipscore", "refclipscore")] == pytest.approx(expected, abs=1e-6)
    answers, references, images = (dict(zip("abcdef", given, strict=True)) for given in (ANSWERS, REFERENCES, places))
    named = mhe.score(answers, references, images={name: str(place) for name, place in images.items()}, **options)
    assert named["clipscore"].value == found["clipscore"].value
    del images["c"]
    gap = mhe.score(answers, references, images=images, **{**options, "metrics": ["clipscore", "rouge-l"]})
    assert gap["clipscore"].value is None
    assert "1 of 6 samples have no image: 'c'" in gap["clipscore"].reason
    assert gap["rouge-l"].value is not None
    for wrong, told in [
        (places[:2], "2 images for 6 texts"),
        (str(places[0]), "images must be files by id"),
        ([*places[:5], 3], "no path: '5'"),
    ]:
        with pytest.raises(UserError, match=told):
            mhe.score(ANSWERS, REFERENCES, images=wrong, **options)
    with pytest.raises(UserError, match="1 without a text: 'z'"):
        mhe.score(answers, references, images={"z": "z.png"}, **options)


def test_images_are_found_by_name_inside_the_folder(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ["a.png", "a.txt", "b.jpg", "b.PNG", "c", "c.png", "below/d.v1.tif", "below/e.jpeg"]:
        (tmp_path / name).write_bytes(b"x")
    folder = ImageFolder(tmp_path)

    def found(name):
        source = folder.source(name)
        return source.path.relative_to(tmp_path).as_posix() if isinstance(source, FileSource) else source.reason

    assert [found(name) for name in ["a", "a.png", "b.jpg", "c", "below/d.v1", "below/e.jpeg"]] == [
        "a.png", "a.png", "b.jpg", "c", "below/d.v1.tif", "below/e.jpeg",
    ]  # fmt: skip
    assert "more than one image 'b'" in found("b")
    assert found("b").endswith(": b.PNG, b.jpg")
    for gone in ["d", "below", "nowhere/a", "nul\0", "x" * 5000]:
        assert found(gone).startswith("no image ")
    for outside in ["../a", str(tmp_path / "a.png"), ".", ""]:
        assert "names no file inside" in found(outside)
    with pytest.raises(UserError, match="is no folder"):
        ImageFolder(tmp_path / "a.png")


@pytest.fixture
def files(tmp_path):
    """Predictions, references and images; the last two samples share an image through the field `image`."""
    images = tmp_path / "images"
    images.mkdir()
    names = ["s0", "s1", "s2", "s3", "shared.png", "shared"]
    for seed, name in enumerate(names[:5]):
        (images / f"{Path(name).stem}.png").write_bytes(picture(seed))
    rows = [
        {"id": f"s{n}", "references": list(refs), **({"image": name} if n > 3 else {})}
        for n, (refs, name) in enumerate(zip(REFERENCES, names, strict=True))
    ]
    lines = [{"id": f"s{n}", "prediction": answer} for n, answer in enumerate(ANSWERS)]
    for name, content in (("predictions.jsonl", lines), ("references.jsonl", rows)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return tmp_path


def arguments_of(clip, *more):
    return (
        "score", "predictions.jsonl", "--references", "references.jsonl", "--metrics", "clipscore,rouge-l",
        "--set", f"metrics.clipscore.encoder={clip}", "--set", "metrics.clipscore.device=cpu", "--json", *more,
    )  # fmt: skip


@pytest.fixture
def call(files, monkeypatch, capsys):
    """`mhe` in this process, in the folder of the files, which saves importing torch each time."""
    from mhe.cli.main import main

    monkeypatch.chdir(files)
    monkeypatch.setenv("MHE_CACHE_DIR", str(files / ".cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main([*map(str, arguments)])
        captured = capsys.readouterr()
        return Done(leaving.value.code, captured.out, captured.err)

    return run


def values_of(done):
    return {value["name"]: value for metric in done.document["metrics"] for value in metric["values"]}


def test_the_command_scores_a_folder_of_images(files, clip, call):
    done = call(*arguments_of(clip, "--images", "images", "--out", "kept"))
    assert done.code == 0, done.err
    images = [picture(seed) for seed in (0, 1, 2, 3, 4, 4)]
    expected = np.mean(by_hand(clip, make_cases(images=images)), axis=0)
    found = values_of(done)
    assert [found[name]["value"] for name in ("clipscore", "refclipscore")] == pytest.approx(expected, abs=1e-6)
    assert done.document["images"] == "images"
    with sqlite3.connect(files / ".cache" / "image-features.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM features").fetchone() == (5,)
    # An image that changed is another score, also where scores are kept.
    (files / "images" / "s0.png").write_bytes(picture(99))
    changed = call(*arguments_of(clip, "--images", "images", "--out", "kept"))
    assert values_of(changed)["clipscore"]["value"] != found["clipscore"]["value"]
    assert values_of(changed)["rouge-l"]["value"] == found["rouge-l"]["value"]


def test_the_command_tells_gaps_and_doubles_and_loses_nothing_else(files, clip):
    (files / "images" / "s1.png").unlink()
    (files / "images" / "s2.jpg").write_bytes(picture(9))
    (files / "images" / "s3.png").write_bytes(b"cut off")
    done = run_mhe(*arguments_of(clip, "--images", "images"), cwd=files)
    assert done.code == 3
    assert "2 of 6 samples have no image in images:" in done.err
    assert "'s1': no image 's1' in images" in done.err
    assert "'s2': more than one image 's2' in images: s2.jpg, s2.png" in done.err
    found = values_of(done)
    assert found["rouge-l"]["value"] is not None
    for name in ("clipscore", "refclipscore"):
        assert found[name]["value"] is None
        assert "3 of 6 samples have an image that cannot be read: 's1', 's2', 's3'" in found[name]["reason"]


def test_the_command_without_images_says_how_to_give_them(clip, call):
    done = call(*arguments_of(clip))
    assert done.code == 3
    assert "6 of 6 samples have no image" in values_of(done)["clipscore"]["reason"]
    assert "--images FOLDER" in values_of(done)["clipscore"]["reason"]
    assert values_of(done)["rouge-l"]["value"] is not None
    wrong = call(*arguments_of(clip, "--images", "nowhere"))
    assert wrong.code == 2
    assert "nowhere is no folder" in wrong.err
    with_task = call("score", "predictions.jsonl", "--task", "roco", "--images", "images")
    assert with_task.code == 2
    assert "--images goes with --references" in with_task.err


def test_a_task_brings_its_own_images(files, clip, call):
    samples = mhe.read_samples("phantom-caption", "test", limit=3)
    lines = [json.dumps({"id": sample.id, "prediction": "a round shape"}) + "\n" for sample in samples]
    (files / "phantom.jsonl").write_text("".join(lines))
    done = call(
        "score", "phantom.jsonl", "--task", "phantom-caption", "--limit", 3, "--metrics", "clipscore", "--json",
        "--set", f"metrics.clipscore.encoder={clip}", "--set", "metrics.clipscore.device=cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = by_hand(clip, [Case(sample, "a round shape") for sample in samples])
    found = values_of(done)
    assert [found["clipscore"]["value"], found["refclipscore"]["value"]] == pytest.approx(
        np.mean(expected, axis=0), abs=1e-6
    )
    assert not done.document["data"]["digest"].startswith("text-only:")


@pytest.mark.parametrize("there", ["nothing", "one"])
def test_a_task_without_its_images_loses_nothing_else(files, clip, call, there):
    """A release of ROCOv2 of two samples, without its images or without one of them."""
    release = files / "release"
    ids = ["ROCOv2_2023_test_000001", "ROCOv2_2023_test_000003"]
    release.mkdir()
    (release / "test_captions.csv").write_text("ID,Caption\n" + "".join(f"{name},a CT scan\n" for name in ids))
    (release / "test_concepts_manual.csv").write_text("ID,CUIs\n" + "".join(f"{name},C0040405\n" for name in ids))
    if there == "one":
        (release / "test_images").mkdir()
        (release / "test_images" / f"{ids[0]}.jpg").write_bytes(picture(0))
    (files / "roco.csv").write_text("ID,Caption\n" + "".join(f"{name},an MRI scan\n" for name in ids))
    done = call(
        "score", "roco.csv", "--task", "roco", "--data-dir", release, "--metrics", "clipscore,rouge-l", "--json",
        "--set", f"metrics.clipscore.encoder={clip}", "--set", "metrics.clipscore.device=cpu", "--profile", "plain",
    )  # fmt: skip
    assert done.code == 3, done.err
    found = values_of(done)
    assert found["rouge-l"]["value"] > 0
    assert found["clipscore"]["value"] is None
    missing = ids if there == "nothing" else ids[1:]
    assert (
        f"{len(missing)} of 2 samples have an image that cannot be read: {missing[0]!r}" in found["clipscore"]["reason"]
    )
    assert ("Scored without the images" in done.err) == (there == "nothing")


def test_nothing_warns(clip, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = make(clip, tmp_path).statistics(make_cases(), PLAIN)
    assert len(rows) == len(make_cases())
