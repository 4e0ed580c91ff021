"""Captions of phantoms, in the manner of figure captions, true of the image."""

from __future__ import annotations

from mhe_tasks.phantom.draws import Draws
from mhe_tasks.phantom.facts import NUMBERS, Facts

_SALT = 0xC2B2AE3D27D4EB4F

# What radiologists call dark and bright depends on what the modality measures.
_APPEARANCES = {
    ("CT", "dark"): "hypodense",
    ("CT", "bright"): "hyperdense",
    ("MRI", "dark"): "hypointense",
    ("MRI", "bright"): "hyperintense",
    ("radiograph", "dark"): "radiolucent",
    ("radiograph", "bright"): "radiopaque",
    ("ultrasound", "dark"): "hypoechoic",
    ("ultrasound", "bright"): "hyperechoic",
}
_VIEWS = {
    "CT": ("Axial CT of the {region}", "CT scan of the {region}"),
    "MRI": ("Axial MRI of the {region}", "MRI scan of the {region}"),
    "radiograph": ("Plain radiograph of the {region}", "Frontal radiograph of the {region}"),
    "ultrasound": ("Ultrasound of the {region}", "Ultrasound image of the {region}"),
}
_FINDINGS = (
    "{view} showing {number} {size} {appearance} {lesions} on the {side} side of the image.",
    "{view}: {number} {size} {appearance} {lesions} on the {side}.",
    "{view} with {number} {size} {appearance} {lesions} on the {side} side.",
)
_SUBTLE_FINDINGS = (
    "{view} showing {number} {look} {appearance} {lesions} in the {position} of the image.",
    "{view}: {number} {look} {appearance} {lesions} in the {position}.",
    "{view} with {number} {look} {appearance} {lesions} in the {position} quadrant.",
)
_NO_FINDINGS = ("{view} showing no lesion.", "{view} without any lesion.", "{view}: no lesion is seen.")


def write_caption(facts: Facts, *, names_size: bool = True) -> str:
    """Return a caption that names every fact but noise and contrast; its phrasing follows from the seed.

    `names_size` False leaves the size out, and can be had of phantoms that have a shape (the subtle ones).
    """
    draws = Draws(facts.seed ^ _SALT)
    view = draws.one_of(_VIEWS[facts.modality]).format(region=facts.region)
    if facts.intensity is None:
        return draws.one_of(_NO_FINDINGS).format(view=view)
    lesions = "lesion" if facts.number == 1 else "lesions"
    appearance = _APPEARANCES[facts.modality, facts.intensity]
    if facts.shape is not None:
        return draws.one_of(_SUBTLE_FINDINGS).format(
            view=view,
            number=NUMBERS[facts.number],
            look=f"{facts.size} {facts.shape}" if names_size else facts.shape,
            appearance=appearance,
            lesions=lesions,
            position=facts.position,
        )
    return draws.one_of(_FINDINGS).format(
        view=view,
        number=NUMBERS[facts.number],
        size=facts.size,
        appearance=appearance,
        lesions=lesions,
        side=facts.side,
    )
