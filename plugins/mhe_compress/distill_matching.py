"""Which states of student and teacher are matched, and the projection between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import UserError
from mhe_compress.distill_states import Projection, output_head, paired_layers
from mhe_compress.distill_training import PROJECTION
from mhe_compress.student_layers import layer_lists, text_configuration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from torch import nn
    from transformers import PreTrainedModel

    from mhe import Architecture


def match_states(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    which: Literal["last", "evenly"],
    architectures: Mapping[str, Architecture],
) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers of each whose outputs are matched, pair by pair; none of either for what the output heads read.

    Puts the projection on the student, as a part that is trained. Raises `UserError` where layers are not found.
    """
    own: list[nn.Module] = []
    theirs: list[nn.Module] = []
    if which == "evenly":
        ours_all = next(iter(layer_lists(student, architectures).values()))
        theirs_all = next(iter(layer_lists(teacher, architectures).values()))
        pairs = paired_layers(len(ours_all), len(theirs_all))
        if any(number < 0 for _, number in pairs):
            raise UserError(
                f"the student has {len(ours_all)} language layers and the teacher {len(theirs_all)}: "
                "with so few of the teacher's use hidden_layers=last."
            )
        own, theirs = [ours_all[number] for number, _ in pairs], [theirs_all[number] for _, number in pairs]
        widths = [int(text_configuration(model.config).hidden_size) for model in (student, teacher)]
    else:
        widths = [int(output_head(model).in_features) for model in (student, teacher)]  # type: ignore[arg-type]
    projection = Projection(widths[0], widths[1], max(1, len(own)))
    student.add_module(PROJECTION, projection.to(student.device))
    return own, theirs
