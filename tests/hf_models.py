"""A random LLaVA of a few thousand weights, written as transformers publishes them: built in well under a second."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from mhe import BackendContext, BytesSource, FileSource, Generation, Image, Message, ModelSpec, Request, Response
from mhe_hf import HfBackend, HfOptions

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}"
    "{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}</s>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CONTEXT = 192
IMAGE = 32
PATCH = 8
IMAGE_TOKENS = (IMAGE // PATCH) ** 2
WORDS = (
    "is there a fracture in the left right lung liver heart yes no what where show this image normal abnormal "
    "chest ray mri ct scan describe pleural effusion side size large small ASSISTANT USER SYSTEM : ? . ,"
)


def build_tokenizer(image_token: str = "<image>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", image_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image_token},
    )


def build_llava(
    folder: Path,
    *,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    hidden: int = 64,
    layers: int = 2,
    feed_forward: int | None = None,
) -> Path:
    """Write a random tiny LLaVA into `folder`."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = build_tokenizer()
    size = {"height": IMAGE, "width": IMAGE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    configuration = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            hidden_size=hidden, intermediate_size=feed_forward or 2 * hidden, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration)
    with torch.no_grad():
        for parameter in model.parameters():
            # Random as initialised, a model of this size repeats one token whatever it is shown.
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 56)) -> bytes:
    """A PNG of noise."""
    values = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def ask(
    name: str,
    text: str = "is there a fracture ?",
    *,
    image: bytes | Path | None = None,
    generation: Generation | None = None,
    seed: int = 0,
) -> Request:
    """A request about one image: bytes, a file, or noise of its own."""
    source = FileSource(image) if isinstance(image, Path) else BytesSource(image or picture(seed))
    return Request(
        sample_id=name,
        messages=(Message("user", text, images=1),),
        images=(Image(name, source),),
        generation=generation or Generation(max_new_tokens=8),
        seed=seed,
        digest=name,
    )


def open_backend(folder: Path, **options: object) -> HfBackend:
    """A loaded backend on the CPU."""
    context = BackendContext(offline=True, cache_dir=folder, training_samples=list)
    spec = ModelSpec(name="tiny", backend="hf", location=str(folder))
    backend = HfBackend(spec, HfOptions(**{"device": "cpu", "num_threads": 1, **options}), context)
    backend.load()
    return backend


def spec_of(folder: Path) -> ModelSpec:
    """A model of the backend `hf` in a folder."""
    return ModelSpec(name="tiny", backend="hf", location=str(folder))


def answers(backend: HfBackend, requests: list[Request], pending: list[str] | None = None) -> dict[str, Response]:
    """Responses by sample, each given once."""
    responses = list(backend.generate(requests, pending if pending is not None else [r.sample_id for r in requests]))
    by_sample = {response.sample_id: response for response in responses}
    assert len(by_sample) == len(responses), "a sample was answered twice"
    return by_sample


def with_generation(request: Request, generation: Generation) -> Request:
    """The same question, answered another way."""
    return dataclasses.replace(request, generation=generation)


def flat(images: object) -> list[PIL.Image.Image]:
    """Images without the lists around them."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flat(item)]
    return [images]


class Instead:
    """An image processor that is called otherwise and is like another in all else."""

    def __init__(self, own: object, call: Callable[..., object]) -> None:
        self._own = own
        self._call = call

    def __getattr__(self, name: str) -> object:
        return getattr(self._own, name)

    def __call__(self, images: object, **kwargs: object) -> object:
        return self._call(images, **kwargs)


def on_image(request: Request, name: str) -> Request:
    """The same request, its image under another name."""
    return dataclasses.replace(request, images=(dataclasses.replace(request.images[0], id=name),))
