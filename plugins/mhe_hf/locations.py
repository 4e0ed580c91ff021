"""Where a model lies and which weights exactly, found out without torch or transformers.

A folder is fingerprinted by content, a hub model by the commit that its revision stands for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import Fingerprint, ModelUnusableError, digest_of, fingerprint_folder

if TYPE_CHECKING:
    from mhe import ModelSpec

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True, slots=True)
class Location:
    """A folder, or a model on the hub at a commit."""

    folder: Path | None
    repo: str | None = None
    commit: str | None = None

    @property
    def source(self) -> str:
        """What transformers' `from_pretrained` is given."""
        return str(self.folder) if self.folder is not None else str(self.repo)


def find_location(spec: ModelSpec, *, offline: bool) -> Location:
    """The folder or hub commit behind a model's name.

    Raises `ModelUnusableError` for what exists neither as a folder nor, as far as can be seen, on the hub.
    """
    folder = Path(spec.location).expanduser()
    if folder.is_dir():
        return Location(folder)
    if folder.is_file():
        raise ModelUnusableError(f"model {spec.name}: {folder} is a file; give the folder that save_pretrained wrote.")
    if not _HUB_ID.match(spec.location) or spec.location.startswith((".", "/", "~")):
        raise ModelUnusableError(
            f"model {spec.name}: there is no folder {spec.location!r}, and it is not a hub id (owner/name)."
        )
    return Location(None, spec.location, find_commit(spec.location, spec.revision, offline=offline))


def find_commit(repo: str, revision: str | None, *, offline: bool) -> str:
    """The commit that a revision of a hub model stands for: from the hub, or from the local cache when offline."""
    if revision and _COMMIT.match(revision):
        return revision
    if not offline:
        return _commit_on_hub(repo, revision)
    commit = _commit_in_cache(repo, revision)
    if commit is None:
        raise ModelUnusableError(
            f"{repo} (revision {revision or 'main'}) is not in the hub cache of this machine, and --offline was asked "
            f"for. Once, with a network: hf download {repo}"
        )
    return commit


def _commit_in_cache(repo: str, revision: str | None) -> str | None:
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs" / (revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def _commit_on_hub(repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Its bases are the errors of whichever HTTP library this version of the hub's client uses.
    of_http = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    unreachable: tuple[type[Exception], ...] = (*of_http, OfflineModeIsEnabled, OSError, ValueError)
    try:
        commit = HfApi().model_info(repo, revision=revision, timeout=30).sha
    except GatedRepoError:
        raise ModelUnusableError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo} and log in: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise ModelUnusableError(f"{repo} has no revision {revision!r} on the hub.") from None
    except RepositoryNotFoundError:
        raise ModelUnusableError(
            f"there is no model {repo!r} on the hub (or it is private: hf auth login), and no folder of that name."
        ) from None
    except unreachable as error:
        raise _unreachable(repo, revision, error) from None
    if commit is None:
        raise ModelUnusableError(f"the hub names no commit for {repo} (revision {revision or 'main'}).")
    return commit


def _unreachable(repo: str, revision: str | None, error: Exception) -> ModelUnusableError:
    cached = _commit_in_cache(repo, revision)
    if cached is not None:
        hint = f"A copy is in the local cache (commit {cached[:12]}): add --offline to use it."
    else:
        hint = "Nothing of it is in the local cache. Give a folder with the model, or connect to the network."
    return ModelUnusableError(f"the hub could not be reached for {repo} ({type(error).__name__}: {error}).\n{hint}")


def fingerprint_of(location: Location) -> Fingerprint:
    """Content digest of a folder, or repository and commit of a hub model.

    Raises `ModelUnusableError` where a folder holds no weights.
    """
    if location.folder is not None:
        return fingerprint_folder(location.folder)
    # A commit names its content.
    return Fingerprint(digest=digest_of({"hub": location.repo, "commit": location.commit}), verified=True)
