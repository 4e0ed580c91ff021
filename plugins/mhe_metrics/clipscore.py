"""CLIPScore and RefCLIPScore under a CLIP checkpoint of one's choice, averaged over samples.

    CLIPScore    = 2.5 · max(cos(image, answer), 0)
    RefCLIPScore = 2 C R / (C + R),   0 where both are 0,
                   C = CLIPScore, the factor 2.5 included,   R = max over references of max(cos(answer, reference), 0)

with the vectors of CLIP's two projections. `A photo depicts ` stands before every answer and every reference. Texts
are the answers as they stand, whatever the profile, and are cut at CLIP's 77 tokens, with the prefix and the tokens
that open and close a text (about 70 words); images go through the checkpoint's own image processor. CLIPScore lies in
0 to 2.5 and in practice between .4 and 1; RefCLIPScore lies in 0 to 10/7, over the samples that have a reference.

There is no default encoder: name one, for values of different checkpoints cannot be compared.
`--set metrics.clipscore.encoder=openai/clip-vit-base-patch32` is what the paper used; a CLIP tuned on medical images
gives another scale. Its content digest is part of the score's key and record. A sample has one image; `mhe score
--references` takes them with `--images FOLDER`. Features are computed once for each distinct image and encoder and
kept in the cache folder. Where the authors' program computes in half precision on a GPU, this is single precision.

Source: Hessel et al., EMNLP 2021, section 3, and the authors' program. Higher is better. Blind to: what lies beyond
the 77th token, small findings (an image is seen at 224 pixels), negation, counts and sides to a large part, grammar;
and, under a CLIP of photographs, to most of medicine. An empty answer is the prefix alone and scores above 0, as in
the authors' program: see `answer-empty`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mhe import MetricUnavailableError, MetricValue, Part, SampleDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, Image, MetricContext, Profile
    from mhe_metrics.clip_encoder import ClipEncoder

    FloatArray = NDArray[np.float64]

PREFIX = "A photo depicts "
WEIGHT = 2.5
NO_ENCODER = (
    "no encoder is set: --set metrics.clipscore.encoder=FOLDER or owner/name of a CLIP; "
    "openai/clip-vit-base-patch32 is what the paper used"
)
NO_IMAGES = "give them with mhe score --images FOLDER, or score a task whose images are on this machine"
SHOWN = 3


class ClipScoreOptions(Part):
    """Which encoder, and how it runs."""

    encoder: str | None = None
    """A folder, or owner/name on the hub, of a CLIP. Required to compute anything."""
    revision: str | None = None
    """Commit, tag or branch of a hub encoder."""
    batch_size: int = Field(default=64, ge=1)
    """Texts, or images, that are encoded together."""
    device: str | None = None
    """Such as cpu or cuda:0; the first GPU where there is one."""


class ClipScore:
    """Means; columns: each value's sum, then the number of samples it is over."""

    Options = ClipScoreOptions
    name = "clipscore"
    version = "1"
    kinds = frozenset({"caption"})
    requires = frozenset({"image", "encoder"})
    columns = ("clipscore", "count", "refclipscore", "referenced")
    values = (
        MetricValue("clipscore", "2.5 times the cosine of image and answer; negative ones are 0", ceiling=WEIGHT),
        MetricValue(
            "refclipscore",
            "harmonic mean of CLIPScore and the best reference's cosine with the answer",
            ceiling=2 * WEIGHT / (WEIGHT + 1),
        ),
    )

    def __init__(self, options: ClipScoreOptions, context: MetricContext) -> None:
        self._options = options
        self._device = options.device or context.device
        self._cache_dir = context.cache_dir
        self._folder: Path | None = None
        self._encoder: ClipEncoder | None = None
        self._texts: dict[str, FloatArray] = {}

    @property
    def resources(self) -> Mapping[str, str]:
        """The content digest of the encoder. Raises `MetricUnavailableError` where it cannot be had."""
        from mhe_metrics.encoders import encoder_digest

        return {"encoder": encoder_digest(self._find())}

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4). Raises `MetricUnavailableError` without an encoder, and with the first samples
        whose image is absent or cannot be read.
        """
        import numpy as np

        del profile
        self._find()
        if not cases:
            return np.zeros((0, len(self.columns)))
        images = self._see(cases)
        self._read(text for case in cases for text in (case.answer, *case.sample.references))
        rows = []
        for case, image in zip(cases, images, strict=True):
            answer = self._texts[case.answer]
            seen = WEIGHT * _cosine(image, answer)
            best = max((_cosine(self._texts[text], answer) for text in case.sample.references), default=None)
            both = (0.0, 0.0) if best is None else (_harmonic(seen, best), 1.0)
            rows.append((seen, 1.0, *both))
        return np.array(rows, dtype=np.float64)

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 4); NaN over no sample."""
        from mhe_metrics.means import mean

        return {
            value.name: mean(sums[..., 2 * place], sums[..., 2 * place + 1]) for place, value in enumerate(self.values)
        }

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The two of each sample; RefCLIPScore is NaN where it has no reference."""
        return self.aggregate(statistics)

    def _see(self, cases: Sequence[Case]) -> list[FloatArray]:
        """Each case's image as a vector."""
        from mhe_metrics.image_features import find_features, open_store

        digests, problems = _image_digests(cases)
        images: dict[str, Image] = {}
        for case, digest in zip(cases, digests, strict=True):
            images.setdefault(digest, case.sample.images[0])
        found, unreadable = find_features(
            {digest: image for digest, image in images.items() if digest not in problems},
            self._load(),
            open_store(self._cache_dir),
            encoder_digest=self.resources["encoder"],
            batch_size=self._options.batch_size,
        )
        problems.update(unreadable)
        refused = [(case, digest) for case, digest in zip(cases, digests, strict=True) if digest in problems]
        if refused:
            names, first = [repr(case.sample.id) for case, _ in refused], problems[refused[0][1]]
            _refuse(names, len(cases), "have an image that cannot be read", f"the first: {first}")
        return [found[digest].astype("f8") for digest in digests]

    def _read(self, texts: Iterable[str]) -> None:
        """Encode texts that are not known yet, each distinct one once."""
        encoder = self._load()
        # By tokens, so that a batch, and its last bits, do not depend on the order of the samples.
        tokens = {text: encoder.tokens(PREFIX + text) for text in dict.fromkeys(texts) if text not in self._texts}
        distinct = sorted(set(tokens.values()), key=lambda found: (-len(found), found))
        vectors: dict[tuple[int, ...], FloatArray] = {}
        for start in range(0, len(distinct), self._options.batch_size):
            batch = distinct[start : start + self._options.batch_size]
            vectors.update(zip(batch, encoder.encode_texts(batch).astype("f8"), strict=True))
        self._texts.update({text: vectors[found] for text, found in tokens.items()})

    def _find(self) -> Path:
        if self._options.encoder is None:
            raise MetricUnavailableError(NO_ENCODER)
        if self._folder is None:
            from mhe_metrics.encoders import find_encoder

            self._folder = find_encoder(self._options.encoder, self._options.revision)
        return self._folder

    def _load(self) -> ClipEncoder:
        if self._encoder is None:
            from mhe_metrics.clip_encoder import ClipEncoder
            from mhe_metrics.encoders import first_device

            self._encoder = ClipEncoder(self._find(), device=self._device or first_device())
        return self._encoder


def _image_digests(cases: Sequence[Case]) -> tuple[list[str], dict[str, str]]:
    """Each case's image by its digest, and why some have none. Raises `MetricUnavailableError` for absent images."""
    named = [(repr(case.sample.id), len(case.sample.images)) for case in cases]
    _refuse([name for name, count in named if count == 0], len(cases), "have no image", NO_IMAGES)
    several = [f"{name} ({count})" for name, count in named if count > 1]
    _refuse(several, len(cases), "have several images, and CLIPScore is of one")
    digests: list[str] = []
    problems: dict[str, str] = {}
    for case in cases:
        image = case.sample.images[0]
        try:
            digests.append(image.source.digest())
        except SampleDataError as error:
            digests.append(f"unreadable:{image.id}")
            problems[digests[-1]] = str(error)
    return digests, problems


def _refuse(names: Sequence[str], total: int, what: str, hint: str = "") -> None:
    if names:
        rest = f", … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        ending = f"; {hint}" if hint else ""
        raise MetricUnavailableError(
            f"{len(names)} of {total} samples {what}: {', '.join(names[:SHOWN])}{rest}{ending}"
        )


def _cosine(one: FloatArray, other: FloatArray) -> float:
    """Of vectors of length 1; negative ones are 0, and what rounds above 1 is 1."""
    return max(0.0, min(1.0, float(one @ other)))


def _harmonic(seen: float, best: float) -> float:
    return 2 * seen * best / (seen + best) if seen + best > 0 else 0.0
