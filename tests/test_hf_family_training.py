"""Every family taught and quantised: labels, loss and modules are what evaluation's own prompts say."""

from __future__ import annotations

import json
import math

import pytest
import torch

import hf_family_models
from hf_family_models import CAPTIONERS
from hf_models import answers, ask, open_backend, picture, spec_of
from mhe import ModelUnusableError, Sample, SampleModelError, TrainingExample
from mhe_hf import ARCHITECTURES, Collator, collate_training, family_of, join_training, load_model

FAMILIES = list(hf_family_models.FAMILIES)


pytestmark = pytest.mark.usefixtures("one_thread")


def example(name: str, question: str, answer: str, image: int = 0) -> TrainingExample:
    request = ask(name, question, image=picture(image))
    return TrainingExample(
        request=request, answer=answer, sample=Sample(id=name, images=request.images, references=(answer,))
    )


# ---------------------------------------------------------------- training


ANSWERS = ("normal", "large effusion in the left lung")


def training_rows(name: str) -> list[TrainingExample]:
    questions = ("what ?", "what ?") if name in CAPTIONERS else ("what ?", "is there a fracture in the left lung ?")
    return [example("a", questions[0], ANSWERS[0]), example("b", questions[1], ANSWERS[1], image=1)]


def end_of(name: str, processor) -> str:
    return {"visiongpt2": "<|endoftext|>", "blip": "[SEP]", "blip-vqa": "[SEP]", "blip-2": "\n"}.get(name, "</s>")


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_answer_and_its_end(loaded_family, name):
    _, processor = loaded_family(name)
    tensors = collate_training(training_rows(name), processor)
    for labels, answer in zip(tensors["labels"], ANSWERS, strict=True):
        text = processor.tokenizer.decode(labels[labels != -100], clean_up_tokenization_spaces=False)
        assert text.replace(" ", "") == (answer + end_of(name, processor)).replace(" ", "")


def log_probabilities(name: str, model, processor, row: TrainingExample) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities (tokens, vocabulary) that evaluation gives each token of the answer, one after the other."""
    batch = Collator(processor).collate([row.request])
    labels = collate_training([row], processor)["labels"][0]
    answer = labels[labels != -100].tolist()
    found = []
    for place in range(len(answer)):
        decoding = family_of(processor).decoding(model, batch.inputs, batch.prompt_tokens)
        inputs = dict(decoding.inputs)
        key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
        before = torch.tensor([answer[:place]], dtype=torch.long)
        inputs[key] = torch.cat([inputs[key], before], dim=1)
        for along in ("attention_mask", "mm_token_type_ids", "cross_attention_mask"):
            if along in inputs and along != key and inputs[along].shape[1] == inputs[key].shape[1] - place:
                fill = inputs[along][:, -1:] if along != "mm_token_type_ids" else torch.zeros(1, 1, dtype=torch.long)
                inputs[along] = torch.cat([inputs[along], *[fill] * place], dim=1)
        found.append(decoding.generator(**inputs).logits[0, -1].log_softmax(-1))
    return torch.stack(found), answer


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_that_of_the_answer_after_evaluations_prompt(loaded_family, name):
    model, processor = loaded_family(name)
    rows = training_rows(name)
    smoothing = 0.1 if name in ("blip", "blip-vqa") else 0.0
    with torch.inference_mode():
        losses = []
        for row in rows:
            logits, answer = log_probabilities(name, model, processor, row)
            right = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
            losses += (-(1 - smoothing) * right - smoothing * logits.mean(dim=1)).tolist()
        loss = model(**collate_training(rows, processor)).loss.item()
    assert math.isclose(loss, sum(losses) / len(losses), rel_tol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_made_alone_and_joined_are_rows_made_together(loaded_family, name):
    _, processor = loaded_family(name)
    rows = training_rows(name)
    together = collate_training(rows, processor)
    joined = join_training([collate_training([row], processor) for row in rows], processor)
    assert joined is not None
    assert joined.keys() == together.keys()
    for key, value in together.items():
        if key == "cross_attention_mask":
            # What a padded place may look at is nobody's matter.
            seen = together["attention_mask"] == 1
            assert torch.equal(joined[key][seen], value[seen])
        else:
            assert torch.equal(joined[key], value), key


@pytest.mark.parametrize("name", ["visiongpt2", "blip", "blip-vqa", "blip-2"])
def test_training_teaches_the_answer(family_folder, name):
    """A few steps on one example, and evaluation writes it."""
    model, processor = load_model(spec_of(family_folder(name)))
    row = example("a", "what ?", "left lung")
    tensors = collate_training([row], processor)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # So spread, weights that tell images apart learn slowly.
                parameter.mul_(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(**tensors).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    from mhe_hf import generation

    model.eval()
    model.generation_config = generation.plain_settings(model, processor)
    batch = Collator(processor).collate([row.request])
    answer = generation.answer_batch(model, processor, batch, None)[0]
    assert (answer.text, answer.finish_reason) == ("left lung", "stop")


@pytest.mark.parametrize("name", ["visiongpt2", "blip", "blip-vqa", "blip-2"])
def test_what_cannot_be_taught_is_refused(loaded_family, name):
    _, processor = loaded_family(name)
    with pytest.raises(SampleModelError, match=r"training row a: .* tokens, and the model's context is 8"):
        collate_training([example("a", "what ?", "left lung " * 20)], processor, context=8)
    token = end_of(name, processor).strip() or "<image>"
    with pytest.raises(SampleModelError, match="sample a: the answer holds"):
        collate_training([example("a", "what ?", f"ct {token}")], processor)


# ---------------------------------------------------------------- modules


def test_a_blip_that_writes_no_text_is_refused(family_folder, tmp_path):
    import shutil

    folder = shutil.copytree(family_folder("blip"), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BlipForImageTextRetrieval"]}))
    with pytest.raises(ModelUnusableError, match=r"BlipForImageTextRetrieval writes no text.*BlipForQuestionAnswering"):
        load_model(spec_of(folder))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_quantised_where_it_is_asked(family_folder, name, kind):
    pytest.importorskip("bitsandbytes")
    from mhe_hf.architectures import module_of

    # A BLIP captioner has no fusion of its own.
    module = "fusion" if kind == "nf4" and name != "blip" else "language"
    backend = open_backend(family_folder(name), quantization=kind, quantized_modules=[module], dtype="float32")
    described = backend.describe()
    architecture = ARCHITECTURES[backend._model.config.model_type]
    quantised = {n for n, m in backend._model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    assert quantised
    assert {module_of(n, architecture) for n in quantised} == {module}
    assert set(described.module_parameters) == {"vision", "fusion", "language"}
    assert described.parameters == sum(described.module_parameters.values())
    assert described.bits_per_weight < 32
    assert answers(backend, [ask("a", "what ?"), ask("b", "what ?", seed=1)])["b"].text is not None
    backend.close()
