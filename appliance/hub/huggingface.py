"""Source over huggingface_hub: names, listings, credentials and its errors in our words."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import huggingface_hub as hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoFile

from appliance.errors import (
    ApplianceError,
    IntegrityError,
    NetworkError,
    NotAuthorisedError,
    NotFoundError,
    UsageError,
)
from appliance.hub.source import (
    MAY_PASS,
    Listing,
    Patience,
    RemoteFile,
    Request,
    SourceKey,
    TryAgain,
    ask,
    checked_file,
    not_its_protocol,
)

T = TypeVar("T")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HuggingFace:
    """The Hugging Face hub, or a mirror that speaks its protocol."""

    key: SourceKey = "hf"
    title = "Hugging Face"

    def __init__(self, endpoint: str | None, patience: Patience) -> None:
        self._patience = patience
        given = endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self.endpoint = given.rstrip("/")
        self._token: str | None = hub.get_token()
        self._api: Any = hub.HfApi(endpoint=self.endpoint, token=self._token or False)

    def resolve(self, name: str, revision: str | None) -> Listing:
        model = self._ask(name, revision, lambda: self._api.model_info(name, revision=revision))
        commit = str(model.sha)
        if not _COMMIT.fullmatch(commit):
            raise IntegrityError(
                f"{self.title} ({self.endpoint}) names no commit for {name}.",
                "Check --endpoint: what answers there is no hub.",
                code="APL-INT-002",
            )
        entries = self._ask(
            name,
            revision,
            lambda: list(self._api.list_repo_tree(name, recursive=True, revision=commit)),
        )
        files = tuple(self._file(e) for e in entries if isinstance(e, RepoFile))
        if not files:
            raise NotFoundError(f"{name} on {self.title} holds no file.", code="APL-NOT-002")
        shown = revision or "main"
        return Listing(self.key, self.title, self.endpoint, name, shown, commit, files)

    def request(self, listing: Listing, file: RemoteFile) -> Request:
        url = hub.hf_hub_url(
            listing.name, file.path, revision=listing.commit, endpoint=self.endpoint
        )
        return Request(url, {"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _file(self, entry: Any) -> RemoteFile:
        if entry.lfs is not None:
            return checked_file(
                self.title, entry.path, entry.lfs.size, "sha256", str(entry.lfs.sha256)
            )
        return checked_file(self.title, entry.path, entry.size, "git-sha1", str(entry.blob_id))

    def _ask(self, name: str, revision: str | None, question: Callable[[], T]) -> T:
        def answered() -> T:
            try:
                return question()
            except Exception as e:
                raise self._in_words(e, name, revision) from e

        return ask(f"{self.title} ({self.endpoint})", answered, self._patience)

    def _in_words(self, e: Exception, name: str, revision: str | None) -> Exception:
        """A library's exception as ours; one that we do not know stays as it is."""
        if isinstance(e, hub_errors.GatedRepoError):
            return self._gated(name)
        if isinstance(e, hub_errors.RevisionNotFoundError):
            return NotFoundError(
                f"{name} on {self.title} has no revision {revision!r}.{self._branches(name)}",
                f"appliance pull {name}",
                code="APL-NOT-003",
            )
        if isinstance(e, hub_errors.RepositoryNotFoundError):
            login = "with this token" if self._token else "and HF_TOKEN is not set"
            return NotFoundError(
                f"there is no {name} on {self.title}, or it is private {login}.",
                f"Check the name at {self.endpoint}/models, or log in: export HF_TOKEN=hf_…",
                code="APL-NOT-002",
            )
        if isinstance(e, hub_errors.HFValidationError):
            return UsageError(f"{name!r} is not the name of a model.", code="APL-USE-010")
        if isinstance(e, hub_errors.OfflineModeIsEnabled):
            return NetworkError(
                "the network is switched off by HF_HUB_OFFLINE.",
                "env -u HF_HUB_OFFLINE appliance pull …",
                code="APL-NET-003",
            )
        if isinstance(e, hub_errors.HfHubHTTPError):
            return self._status(e)
        if isinstance(e, _transport_errors()):
            return TryAgain(f"no answer ({str(e) or type(e).__name__})")
        if isinstance(e, ValueError | KeyError | TypeError):
            return not_its_protocol(self.title, self.endpoint)
        return e

    def _status(self, e: Any) -> Exception:
        response = e.response
        status = response.status_code if response is not None else 0
        if status in MAY_PASS:
            after = response.headers.get("Retry-After", "")
            return TryAgain(f"it answers {status}", float(after) if after.isdigit() else None)
        if status in (401, 403):
            return NotAuthorisedError(
                f"{self.title} refuses this token ({status}).",
                f"Make a new one at {self.endpoint}/settings/tokens, then: export HF_TOKEN=hf_…",
                code="APL-AUT-002",
            )
        return NetworkError(f"{self.title} answers {status}.", code="APL-NET-002")

    def _gated(self, name: str) -> ApplianceError:
        whose = self._account()
        why = f"the account {whose!r} may not" if whose else "no token is set, so nobody asks"
        return NotAuthorisedError(
            f"{name} is gated on {self.title}: {why}.",
            f"Accept its terms at {self.endpoint}/{name}, then: export HF_TOKEN=hf_… "
            "(an account that was let in).",
            code="APL-AUT-001",
        )

    def _account(self) -> str:
        """Whose token it is, when the hub says so."""
        if not self._token:
            return ""
        try:
            return str(self._api.whoami().get("name", "of HF_TOKEN"))
        except Exception:
            return "of HF_TOKEN"

    def _branches(self, name: str) -> str:
        try:
            refs = self._api.list_repo_refs(name)
        except Exception:
            return ""
        names = [r.name for r in (*refs.branches, *refs.tags)][:12]
        return f" It has: {', '.join(names)}." if names else ""


def _transport_errors() -> tuple[type[BaseException], ...]:
    """What the client under huggingface_hub raises; which client that is depends on its version."""
    found: list[type[BaseException]] = [ConnectionError, TimeoutError]
    for client in ("httpx2", "httpx"):
        try:
            found.append(importlib.import_module(client).HTTPError)
        except ImportError:
            continue
    return tuple(found)
