"""``hub:<org>/<name>[@revision]``: fetch a checkpoint into Hugging Face's own cache, with its revision pinned.

``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` mean what they mean to every tool with that cache.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.core.progress import Progress, silent
from vitedge.errors import ModelError, NotInstalledError, ResourceError, UsageError
from vitedge.formats.model_folder import MODEL_WEIGHTS
from vitedge.graph.state_dicts import PICKLED_WEIGHTS

PREFIX = "hub:"
CONFIG, WEIGHTS, OLDER_WEIGHTS = "config.json", MODEL_WEIGHTS, PICKLED_WEIGHTS  # the older where there are no others
HELPFUL = ("preprocessor_config.json", "processor_config.json", "README.md")  # preprocessing, licence: where published

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Fetched:
    """A repository's files at one commit."""

    folder: Path
    repo: str  # org/name
    revision: str  # the commit, 40 hexadecimal digits


def fetch(source: str, action: str, progress: Progress = silent) -> Fetched:
    """Download the checkpoint's files into the local cache, unless they are there.

    Args:
        source: ``hub:<org>/<name>``, with ``@`` and a branch, tag or commit where it shall not be ``main``.
        action: for error texts.
        progress: called with ("download", KiB done, KiB in all).

    Raises:
        UsageError: no such repository or revision.
        ModelError: it publishes no config.json, or no weights.
        ResourceError: the hub can't be reached and the cache doesn't have it, or it isn't public.
        NotInstalledError: no huggingface_hub.
    """
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None:
        raise UsageError(
            action, f"'{source}' isn't hub:<org>/<name>[@revision]", "write, say, hub:timm/test_vit.r160_in1k"
        )
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "huggingface_hub", "hub") from error
    repo, revision = match["repo"], match["revision"]
    bar = _bar(progress)

    def download(file: str, commit: str | None) -> Path | None:
        try:
            return Path(hf_hub_download(repo, file, revision=commit, tqdm_class=bar))
        except errors.GatedRepoError as error:
            hint = f"accept its terms on the page of {repo}, then set HF_TOKEN or run: hf auth login"
            raise ResourceError(
                action, f"{repo} is gated: its publisher asks for its terms to be accepted", hint
            ) from error
        except errors.RepositoryNotFoundError as error:
            hint = "check the name; for a private one set HF_TOKEN or run: hf auth login"
            raise UsageError(action, f"the hub has no public repository {repo}", hint) from error
        except errors.RevisionNotFoundError as error:
            hint = "name a branch, a tag or a commit of it"
            raise UsageError(action, f"{repo} has no revision '{revision}'", hint) from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            if file in HELPFUL:  # an offline cache may lack files that weren't there when it was filled
                return None
            hint = "check the network and HF_HUB_OFFLINE, or download the repository elsewhere and name its folder"
            raise ResourceError(action, f"the hub can't be reached, and {file} isn't in the cache", hint) from error
        except errors.EntryNotFoundError as error:
            if file in (*HELPFUL, WEIGHTS):
                return None
            hint = "export the model to ONNX, or load it in your own code with --factory"
            names = f"{WEIGHTS} and no {OLDER_WEIGHTS}" if file == OLDER_WEIGHTS else file
            raise ModelError(action, f"{repo} publishes no {names}", hint) from error
        except errors.HFValidationError as error:
            raise UsageError(action, f"'{repo}' isn't a repository's name", "write hub:<org>/<name>") from error
        except Exception as error:  # the HTTP library's exceptions, which differ between versions
            first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            hint = "try again, or download the repository elsewhere and name its folder"
            raise ResourceError(action, f"the download of {file} failed: {first}", hint) from error

    config = download(CONFIG, revision)
    assert config is not None
    commit = config.parent.name  # .../snapshots/<commit>/config.json
    for file in HELPFUL:
        download(file, commit)
    if download(WEIGHTS, commit) is None:
        download(OLDER_WEIGHTS, commit)
    return Fetched(config.parent, repo, commit)


def _bar(progress: Progress) -> Any:
    """Return a tqdm that draws nothing and reports to ``progress``."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]  # it ships no types

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface_hub's own
            super().__init__(*arguments, **{**options, "disable": False, "file": io.StringIO(), "leave": False})

        def display(self, *_: Any, **__: Any) -> bool:
            if self.total:
                progress("download", int(self.n) >> 10, int(self.total) >> 10)
            return True

    return Bar
