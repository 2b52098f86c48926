"""Source over modelscope: names, listings, credentials and its errors in our words."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import urlencode

from appliance.errors import IntegrityError, NetworkError, NotAuthorisedError, NotFoundError
from appliance.hub.source import (
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


class ModelScope:
    """ModelScope. Needs the extra `modelscope`; ImportError without it."""

    key: SourceKey = "modelscope"
    title = "ModelScope"

    def __init__(self, endpoint: str | None, patience: Patience) -> None:
        # The client's own tries are silent, long and on top of ours.
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "1")
        from modelscope_hub import HubApi, HubConfig, errors

        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
        self._errors: Any = errors
        self._patience = patience
        self._config: Any = HubConfig(endpoint=endpoint)
        self._api: Any = HubApi(config=self._config)
        self.endpoint = str(self._config.endpoint).rstrip("/")

    def resolve(self, name: str, revision: str | None) -> Listing:
        shown = revision or "master"
        if "/" not in name:
            raise NotFoundError(
                f"there is no {name} on {self.title}: its names are OWNER/NAME.",
                code="APL-NOT-002",
            )

        def question() -> list[dict[str, Any]]:
            return list(self._api.legacy.list_repo_files(name, "model", revision=shown))

        entries = self._ask(name, shown, question)
        files = tuple(self._file(e) for e in entries if e.get("Type", "blob") != "tree")
        if not files:
            raise NotFoundError(
                f"{name} on {self.title} holds no file at {shown!r}.", code="APL-NOT-002"
            )
        return Listing(self.key, self.title, self.endpoint, name, shown, shown, files)

    def request(self, listing: Listing, file: RemoteFile) -> Request:
        query = urlencode({"Revision": listing.revision, "FilePath": file.path})
        url = f"{self.endpoint}/api/v1/models/{listing.name}/repo?{query}"
        token = self._config.token
        if not token:
            return Request(url)
        # Older routes know the cookie, newer ones the header; the client sends both too.
        return Request(url, {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"})

    def _file(self, entry: dict[str, Any]) -> RemoteFile:
        path = entry.get("Path") or entry.get("Name")
        digest = str(entry.get("Sha256") or "")
        if not digest and bool(entry.get("IsLFS")):
            raise IntegrityError(
                f"{self.title} lists {path!r} without a sha256.", code="APL-INT-002"
            )
        return checked_file(self.title, path, entry.get("Size"), "sha256", digest)

    def _ask(self, name: str, revision: str, question: Callable[[], T]) -> T:
        def answered() -> T:
            try:
                return question()
            except Exception as e:
                raise self._in_words(e, name, revision) from e

        return ask(f"{self.title} ({self.endpoint})", answered, self._patience)

    def _in_words(self, e: Exception, name: str, revision: str) -> Exception:
        """A library's exception as ours; one that we do not know stays as it is."""
        errors = self._errors
        if isinstance(e, errors.AuthenticationError | errors.PermissionDeniedError):
            set_up = "refuses this token" if self._config.token else "wants a token"
            return NotAuthorisedError(
                f"{self.title} {set_up} for {name}.",
                f"Ask for access at {self.endpoint}/models/{name}, then: "
                "export MODELSCOPE_API_TOKEN=ms-…",
                code="APL-AUT-001",
            )
        if isinstance(e, errors.NotExistError):
            asked = "" if revision == "master" else f" at {revision!r}"
            return NotFoundError(
                f"there is no {name}{asked} on {self.title}, or it is private.",
                "Check the name; for the international site: "
                "--source modelscope --endpoint https://www.modelscope.ai",
                code="APL-NOT-002",
            )
        if isinstance(e, errors.RateLimitError):
            after = e.retry_after
            return TryAgain("it answers 429", float(after) if after is not None else None)
        if isinstance(e, errors.ServerError | errors.NetworkError):
            system = re.search(r"\[Errno \d+\] [\w ]+", str(e))
            return TryAgain(f"no answer ({system[0] if system else str(e).splitlines()[0][:120]})")
        if isinstance(e, errors.APIError):
            return NetworkError(
                f"{self.title} answers: {str(e).splitlines()[0]}", code="APL-NET-002"
            )
        if isinstance(e, ValueError | KeyError | TypeError | AttributeError):
            return not_its_protocol(self.title, self.endpoint)
        return e


def installed_client() -> bool:
    """Whether the extra `modelscope` is installed."""
    return find_spec("modelscope_hub") is not None
