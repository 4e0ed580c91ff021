"""CLIPScore and RefCLIPScore of a small CLIP made here, against the formula, and what cannot be computed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import mhe
from mhe import (
    MetricContext,
    MetricUnavailableError,
    Sample,
    open_image,
)
from mhe.testing import check_metric, toy_cases
from mhe_metrics.clipscore import ClipScore
from mhe_metrics.encoders import encoder_digest
from mhe_metrics.profiles.plain import PLAIN

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from clip_cases import ANSWERS, LONG, by_hand, make, make_cases, picture  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "own_image_stores")


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
