"""`mhe check-backends` over transformers: answers alone and in batches, and log-probabilities that are right."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest

import hf_family_models
import hf_models
from mhe import Generation, ModelSpec, open_catalog, open_image
from mhe.agreement import TIE
from mhe.backend_checks import BackendChoice, check_backends
from mhe.run_plan import RunOptions

TOKENS = 8
HALF = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    from mhe_tiny.build import build_folder

    return build_folder("tiny-llava", tmp_path_factory.mktemp("twin") / "tiny-llava")


class Alone:
    """The same model through transformers' own classes, one question at a time, without a cache."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, request):
        content = [{"type": "image"}, {"type": "text", "text": request.messages[-1].text}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(text=text, images=[open_image(request.images[0])], return_tensors="pt")

    def log_probabilities(self, request, before):
        """Over the vocabulary, for the token after `before`."""
        import torch

        inputs = self.inputs(request)
        ids = torch.cat([inputs["input_ids"], torch.tensor([list(before)], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits
        return logits[0, -1].log_softmax(-1)

    def answer(self, request, before=()):
        """Greedy tokens after and with `before`."""
        written = list(before)
        while len(written) < TOKENS and self.processor.tokenizer.eos_token_id not in written:
            written.append(int(self.log_probabilities(request, written).argmax()))
        return written

    def text(self, tokens):
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def requests():
    from mhe.prompting import build_request
    from mhe.samples import load_samples

    catalog = open_catalog()
    task = catalog.task("phantom-vqa")
    generation = task.generation.model_copy(update={"max_new_tokens": TOKENS})
    samples = load_samples(catalog, task, limit=24, offline=True).samples
    return [build_request(task, sample, generation, 0) for sample in samples]


def check_twin(folder, tmp_path, backends, limit=24, **settings):
    return check_backends(
        open_catalog(),
        str(folder),
        "phantom-vqa",
        [BackendChoice.parse(text) for text in backends.split(",")],
        RunOptions(
            runs_dir=tmp_path, limit=limit, offline=True, generation={"max_new_tokens": TOKENS}, metrics=("accuracy",)
        ),
        settings=settings,
        checkpoints_dir=tmp_path,
        progress=lambda _label: nullcontext(lambda *_: None),
    )


def texts_of(checked):
    lines = (checked.folder / "samples.jsonl").read_text().splitlines()
    return {line["id"]: line["text"] for line in map(json.loads, lines)}


def test_a_random_twin_answers_alike_alone_and_in_a_batch(twin, tmp_path):
    found = check_twin(twin, tmp_path, "hf:1,hf:16")
    (other,) = found.others
    assert found.agrees, other.differences
    assert other.equal + other.count("tie") == found.samples == 24
    assert {run.record.backend.precision for run in (found.reference, other)} == {"float32"}
    assert len(set(texts_of(found.reference).values())) > 12, "a model of few answers shows nothing"
    assert texts_of(other).keys() == texts_of(found.reference).keys()


def test_log_probabilities_are_those_of_transformers(twin, requests):
    from mhe import BackendContext
    from mhe_hf import HfBackend, HfOptions

    alone = Alone(twin)
    spec = ModelSpec(name="twin", backend="hf", location=str(twin))
    options = HfOptions(dtype="float32", device="cpu")
    backend = HfBackend(spec, options, BackendContext(offline=True, cache_dir=twin, training_samples=list))
    backend.load()
    try:
        for request, before in [(requests[0], ()), (requests[3], (31, 7, 190))]:
            places = backend.next_tokens(request, before, 50)
            written = alone.answer(request, before)
            assert len(places) == len(written)
            for place, chances in enumerate(places):
                wanted = alone.log_probabilities(request, written[:place])
                assert [len(chances), len({chance.id for chance in chances})] == [50, 50]
                for chance in chances:
                    assert chance.log_probability == pytest.approx(float(wanted[chance.id]), abs=2e-5)
                assert chances[0].log_probability == pytest.approx(float(wanted.max()), abs=2e-5)
                if not chances[0].is_end:
                    assert chances[0].text.strip() == alone.text([*written[:place], chances[0].id])
    finally:
        backend.close()


@pytest.mark.parametrize("family", hf_family_models.FAMILIES)
def test_every_family_tells_the_chances_of_its_own_answer(family, tmp_path):
    folder = hf_family_models.FAMILIES[family](tmp_path)
    asked = hf_models.ask("a", "size ?", generation=Generation(max_new_tokens=5))
    backend = hf_models.open_backend(folder, dtype="float32", batch_size=1)
    try:
        answer = hf_models.answers(backend, [asked])["a"]
        places = backend.next_tokens(asked, (), 8)
        assert places[-1][0].text.rstrip(HALF).strip() == answer.text
        assert len(places) == answer.generated_tokens
        second = places[0][1].id
        forced = backend.next_tokens(asked, (second,), 8)
        assert [chance.id for chance in forced[0]] == [chance.id for chance in places[0]]
        if not places[0][1].is_end:
            assert forced[1] != places[1]
            assert all(chance.text.startswith(places[0][1].text.rstrip(HALF)) for chance in forced[1])
    finally:
        backend.close()


def scripted(folder, tmp_path, answers):
    """The first questions to the twin, beside a script that gives these answers to them."""
    found = check_twin(folder, tmp_path, "hf:1,scripted", limit=len(answers), scripted={"answers": answers})
    assert found.samples == len(found.others[0].differences) == len(answers)
    return {difference.sample: difference for difference in found.others[0].differences}, found.agrees


def test_a_made_up_difference_has_the_gap_that_transformers_computes(twin, requests, tmp_path):
    alone, place, wanted, changes = Alone(twin), 2, {}, {}
    for request in requests[:3]:
        written = alone.answer(request)
        chances = alone.log_probabilities(request, written[:place])
        second = int(chances.topk(2).indices[1])
        changes[request.sample_id] = alone.text(alone.answer(request, [*written[:place], second]))
        wanted[request.sample_id] = (written[place], second, chances)
    differences, agrees = scripted(twin, tmp_path, changes)
    assert not agrees
    for sample, (best, second, chances) in wanted.items():
        difference = differences[sample]
        (fork,) = difference.forks
        assert difference.verdict == "disagreement"
        # The script counts words.
        assert [cause.split(":")[0] for cause in difference.causes] == ["other prompt tokens"]
        assert (fork.place, fork.best.id, fork.other.id, fork.second.id) == (place + 1, best, second, second)
        assert fork.gap == pytest.approx(float(chances[best] - chances[second]), abs=4e-5)
        assert fork.gap > TIE


def test_two_tokens_of_one_score_are_a_tie(twin, requests, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    request, place = requests[0], 1
    before = Alone(twin).answer(request)
    folder = tmp_path / "tied"
    shutil.copytree(twin, folder)
    weights = load_file(folder / "model.safetensors")
    (head,) = [name for name in weights if name.endswith("lm_head.weight")]
    # A later token with the same row: its score is the same to the last bit, and the first of the two is chosen.
    double = next(n for n in range(len(weights[head]) - 1, before[place], -1) if n not in before)
    weights[head][double] = weights[head][before[place]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    alone = Alone(folder)
    written = alone.answer(request)
    assert written[: place + 1] == before[: place + 1]
    assert torch.equal(*alone.log_probabilities(request, written[:place])[[before[place], double]])
    other = alone.text(alone.answer(request, [*written[:place], double]))
    differences, agrees = scripted(folder, tmp_path, {request.sample_id: other})
    difference = differences[request.sample_id]
    assert agrees
    assert (difference.verdict, difference.causes[0]) == ("tie", "near-tie")
    fork = difference.forks[0]
    assert (fork.place, fork.best.id, fork.other.id, fork.gap) == (place + 1, before[place], double, 0.0)
