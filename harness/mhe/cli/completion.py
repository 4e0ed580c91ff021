"""Names offered by shell completion: from the catalogue alone, nothing heavy.

An unreadable folder offers nothing: an error would land in the middle of the line that somebody types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import click

    from mhe.catalog import Catalog

    Completer: TypeAlias = Callable[[click.Context, click.Parameter, str], list[str]]


def _completer(names: Callable[[Catalog], Iterable[str]]) -> Completer:
    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        from mhe.catalog import open_catalog

        try:
            return sorted(name for name in names(open_catalog()) if name.startswith(incomplete))
        except OSError:
            return []

    return complete


def _models(catalog: Catalog) -> list[str]:
    from mhe.checkpoints import list_checkpoints

    return [*catalog.models, *list_checkpoints()]


complete_task = _completer(lambda catalog: catalog.task_folders)
complete_model = _completer(_models)
complete_backend = _completer(lambda catalog: catalog.backends)
complete_engine = _completer(lambda catalog: catalog.engines)
complete_metric = _completer(lambda catalog: catalog.metrics)
complete_pipeline = _completer(lambda catalog: catalog.pipelines)
complete_plugin = _completer(lambda catalog: [plugin.name for plugin in catalog.plugins])
complete_profile = _completer(lambda catalog: catalog.profiles)
complete_reader = _completer(lambda catalog: catalog.readers)
complete_tagger = _completer(lambda catalog: catalog.taggers)
complete_recipe = _completer(lambda catalog: catalog.recipes)


def complete_backends(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Backends after the last comma of a list."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in complete_backend(ctx, parameter, last)]
