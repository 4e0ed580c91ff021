"""Training inputs: the prompt is evaluation's, and only the answer and its end of turn are learnt."""

from __future__ import annotations

import pytest
import torch

import hf_models
from hf_models import ask, picture
from mhe import ModelSpec, Sample, SampleModelError, TrainingExample
from mhe_hf import Collator, collate_training, load_model

CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }}{{ '\\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}</s>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant{{ '\\n' }}{% endif %}"
)
WITHOUT_END = hf_models.CHAT_TEMPLATE.replace("{% if message['role'] == 'assistant' %}</s>{% endif %}", "")
CHANGES_THE_PAST = "{{ messages | length }}" + hf_models.CHAT_TEMPLATE


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = hf_models.build_llava(tmp_path_factory.mktemp("llava"))
    return load_model(ModelSpec(name="t", backend="hf", location=str(folder)))


@pytest.fixture
def processor(loaded):
    processor = loaded[1]
    before = processor.chat_template
    yield processor
    processor.chat_template = before


def example(name: str, question: str, answer: str, *, image: int = 0) -> TrainingExample:
    request = ask(name, question, image=picture(image))
    if image >= 0:
        request = hf_models.on_image(request, f"image{image}")
    sample = Sample(id=name, images=request.images, references=(answer,), question=question)
    return TrainingExample(request=request, answer=answer, sample=sample)


def learnt(processor, tensors, row: int) -> str:
    labels = tensors["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


@pytest.mark.parametrize("template", [hf_models.CHAT_TEMPLATE, CHATML, WITHOUT_END])
def test_labels_are_the_answer_and_its_end_of_turn(processor, template):
    processor.chat_template = template
    rows = [example("a", "is there a fracture ?", "yes"), example("b", "what side ?", "the left lung , not the right")]
    tensors = collate_training(rows, processor)
    assert tensors["labels"].shape == tensors["input_ids"].shape == tensors["attention_mask"].shape
    assert learnt(processor, tensors, 0).strip() == "yes</s>"
    assert learnt(processor, tensors, 1).strip() == "the left lung , not the right</s>"
    learnt_places = tensors["labels"] != -100
    assert torch.equal(tensors["labels"][learnt_places], tensors["input_ids"][learnt_places])


@pytest.mark.parametrize("template", [hf_models.CHAT_TEMPLATE, CHATML, WITHOUT_END])
def test_what_comes_before_the_answer_is_the_prompt_of_evaluation(processor, template):
    processor.chat_template = template
    one = example("a", "is there a fracture ?", "yes")
    tensors = collate_training([one], processor)
    prompt = Collator(processor).collate([one.request])
    length = prompt.prompt_tokens[0]
    assert torch.equal(tensors["input_ids"][0, :length], prompt.inputs["input_ids"][0])
    assert (tensors["labels"][0, :length] == -100).all()
    assert tensors["labels"][0, length] != -100
    assert torch.equal(tensors["pixel_values"], prompt.inputs["pixel_values"])


@pytest.mark.parametrize("template", [hf_models.CHAT_TEMPLATE, CHATML])
def test_questions_of_one_image_share_a_sequence(processor, template):
    processor.chat_template = template
    talk = [example(f"q{n}", f"size {n} ?", answer) for n, answer in enumerate(["small", "large", "normal"])]
    tensors = collate_training([talk, example("z", "what ?", "ct", image=1)], processor)
    assert tensors["pixel_values"].shape[0] == 2
    assert learnt(processor, tensors, 0).replace(" ", "") == "small</s>large</s>normal</s>"
    assert learnt(processor, tensors, 1).strip() == "ct</s>"
    assert (tensors["input_ids"] == processor.image_token_id).sum() == 2 * hf_models.IMAGE_TOKENS


def test_padding_is_right_and_never_learnt(processor):
    tensors = collate_training([example("a", "what ?", "ct"), example("b", "where is it ? " * 4, "chest")], processor)
    assert tensors["attention_mask"][0, -1] == 0
    assert (tensors["labels"][tensors["attention_mask"] == 0] == -100).all()


def test_the_loss_of_a_row_does_not_depend_on_its_neighbours(loaded):
    model, processor = loaded
    rows = [example("a", "what ?", "ct"), example("b", "where is it ? " * 4, "the chest")]
    together = collate_training(rows, processor)
    with torch.inference_mode():
        logits = model(**{k: v for k, v in together.items() if k != "labels"}).logits
        for number, row in enumerate(rows):
            alone = collate_training([row], processor)
            loss = model(**alone).loss
            shifted = torch.nn.functional.cross_entropy(logits[number, :-1], together["labels"][number, 1:])
            torch.testing.assert_close(loss, shifted, atol=1e-4, rtol=1e-4)


def test_training_on_it_teaches_the_answer(loaded, tmp_path):
    model, processor = loaded
    tensors = collate_training([example("a", "what ?", "ct"), example("b", "side ?", "left", image=1)], processor)
    trained = type(model)(model.config)
    trained.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = trained(**tensors).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_a_row_beyond_the_context_is_refused(processor):
    with pytest.raises(SampleModelError, match=r"training row a: \d+ tokens, and the model's context is 40"):
        collate_training([example("a", "what ? " * 40, "ct")], processor, context=40)


def test_a_control_token_in_an_answer_is_refused(processor):
    with pytest.raises(SampleModelError, match="'</s>'"):
        collate_training([example("a", "what ?", "ct</s>")], processor)


def test_rows_of_different_images_do_not_share_a_sequence(processor):
    with pytest.raises(ValueError, match="another image"):
        collate_training([[example("a", "what ?", "ct"), example("b", "what ?", "mri", image=1)]], processor)


def test_a_template_whose_answers_do_not_follow_its_prompts_is_refused(processor):
    processor.chat_template = CHANGES_THE_PAST
    with pytest.raises(SampleModelError, match="chat template"):
        collate_training([example("a", "what ?", "ct")], processor)


def test_a_token_that_joins_prompt_and_answer_is_learnt_whole(processor):
    """A prompt that ends in a blank, which the tokenizer joins to the answer's first word."""
    processor.chat_template = CHATML.replace("assistant{{ '\\n' }}", "assistant ").replace(
        "['role'] }}{{ '\\n' }}", "['role'] }} "
    )
    tensors = collate_training([example("a", "what ?", "ct scan")], processor)
    assert learnt(processor, tensors, 0) == " ct scan</s>"
