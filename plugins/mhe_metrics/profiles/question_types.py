"""Which question is closed, for conventions that take the data set's word for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhe import Sample

YES_OR_NO = frozenset({"yes", "no"})


def is_yes_or_no(reference: str) -> bool:
    """Whether a reference is yes or no, case and surrounding white space apart."""
    return reference.strip().lower() in YES_OR_NO


def declared_type(sample: Sample) -> str:
    """`closed` or `open` as the data set says; where it says nothing, `closed` if every reference is yes or no."""
    if sample.answer_type is not None:
        return sample.answer_type
    return yes_no_type(sample)


def yes_no_type(sample: Sample) -> str:
    """`closed` if every reference is yes or no, whatever the data set says; else `open`."""
    return "closed" if all(is_yes_or_no(reference) for reference in sample.references) else "open"
