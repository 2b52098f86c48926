"""What can go wrong and be told to a user.

ApplianceError(message, hint, code)
├── UsageError            exit 2   wrong flag, bad configuration, bad name
├── NotRunningError       exit 3   nothing runs, or what runs is not healthy
├── NotFoundError         exit 4   no such model, profile, revision or run
├── NotAuthorisedError    exit 5   gated model, bad token
├── NetworkError          exit 6   safe to run again: it resumes
├── DoesNotFitError       exit 7   disk, memory or context too small
├── HardwareError         exit 8   no GPU, driver too old
├── IntegrityError        exit 9   bytes that are not what they claim to be
│   └── DamagedError               a file of a model on this disk
├── EngineError           exit 10  the engine did not start, or died
├── BusyError             exit 11  port in use, lock held
└── RequestError          (HTTP)   a request that is refused; carries its status
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = ("APL-NOT-001", "APL-NOT-003", "APL-NOT-008")
"""Codes of a model, a revision or files that a pull would bring."""


class ApplianceError(Exception):
    """A failure with a cause and a cure.

    message: what happened and why, one or two sentences.
    hint: what to do, with values computed; may be empty.
    code: stable name such as ``APL-FIT-002``.
    detail: what a program wants to know of it: plain JSON values by name, sizes as `_bytes`.
    """

    exit_code = 1
    default_code = "APL-000"

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        code: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.detail = dict(detail or {})


class UsageError(ApplianceError):
    exit_code = 2
    default_code = "APL-USE-001"


class NotRunningError(ApplianceError):
    exit_code = 3
    default_code = "APL-RUN-001"


class NotFoundError(ApplianceError):
    exit_code = 4
    default_code = "APL-NOT-001"


class NotAuthorisedError(ApplianceError):
    exit_code = 5
    default_code = "APL-AUT-001"


class NetworkError(ApplianceError):
    exit_code = 6
    default_code = "APL-NET-001"


class DoesNotFitError(ApplianceError):
    exit_code = 7
    default_code = "APL-FIT-001"


class HardwareError(ApplianceError):
    exit_code = 8
    default_code = "APL-HW-001"


class IntegrityError(ApplianceError):
    exit_code = 9
    default_code = "APL-INT-001"


class DamagedError(IntegrityError):
    """A file of a model that cannot be read, or lacks what belongs into it."""

    default_code = "APL-INT-004"

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            "appliance cache verify     finds what is damaged of models that were pulled\n"
            "appliance pull MODEL       fetches it again",
        )


class EngineError(ApplianceError):
    exit_code = 10
    default_code = "APL-ENG-001"


class BusyError(ApplianceError):
    exit_code = 11
    default_code = "APL-BSY-001"


class RequestError(ApplianceError):
    """A request refused before or while it runs.

    status: HTTP status; type, code, param: the fields of OpenAI's error object.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str = "invalid_value",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.type = type
        self.param = param
        self.retry_after_s = retry_after_s


class PromptTooLongError(RequestError):
    """A prompt that leaves no room for an answer.

    Its words hold what litellm and others look for, "this model's maximum context length is".
    tokens: of the prompt, 0 where it was too long to be counted. context: of the model, in tokens.
    """

    def __init__(
        self, what: str, *, tokens: int, context: int, cure: str, param: str | None
    ) -> None:
        super().__init__(
            f"The prompt has {what}; this model's maximum context length is {context:,} tokens"
            f"{cure}",
            code="context_length_exceeded",
            param=param,
        )
        self.tokens, self.context = tokens, context
