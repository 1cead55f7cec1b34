"""Every error that can reach a caller or an operator.

    ServiceError                     status  code
    ├── MalformedRequestError          400   malformed-request      not HTTP as the standards define it
    ├── MalformedBodyError             400   malformed-body         not JSON, truncated, not the encoding it claims
    ├── InvalidInputError              400   invalid-input          a value, a shape or a key is not what it should be
    │   └── FeatureMismatchError       400   feature-mismatch       width or names differ from the model's features
    ├── UnsupportedError               400   unsupported            this server has no such thing
    ├── ForbiddenError                 403   forbidden              not for callers
    ├── RouteNotFoundError             404   route-not-found
    ├── ModelNotFoundError             404   model-not-found
    ├── MethodNotAllowedError          405   method-not-allowed
    ├── ReadTimeoutError               408   read-timeout           head or body did not arrive in time
    ├── SwapUnderWayError              409   swap-under-way         one change of model at a time
    ├── NoPreviousVersionError         409   no-previous-version    nothing to roll back to
    ├── PayloadTooLargeError           413   payload-too-large      bytes, rows or chunks over the limit
    ├── TargetTooLongError             414   target-too-long
    ├── UnsupportedMediaTypeError      415   unsupported-media-type
    ├── ExpectationFailedError         417   expectation-failed
    ├── ModelRefusedError              422   model-refused          a model that cannot be served; the one before goes on
    ├── HeadTooLargeError              431   head-too-large
    ├── PredictionError                500   prediction-failed      the model failed on rows that passed every check
    ├── InternalError                  500   internal-error
    ├── OverloadedError                503   overloaded
    └── NotReadyError                  503   not-ready

    StartError                       what stops a process from starting; holds every fault found
    ├── ModelFileError               one model file that cannot be served, and why
    └── FetchError                   one model that cannot be fetched; whether a later attempt may succeed
    RowsFileError                    a file of rows that cannot be read, scored or written, and where

A message says what, where and what would be right. It never repeats a caller's value.
"""

from __future__ import annotations

from collections.abc import Sequence


class ServiceError(Exception):
    """An answer other than 2xx: HTTP status, stable code, and a sentence for the caller."""

    status = 500
    code = "internal-error"
    # Seconds, for Retry-After; None where coming back does not help.
    retry_after_seconds: int | None = None
    allow: tuple[str, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MalformedRequestError(ServiceError):
    status = 400
    code = "malformed-request"


class MalformedBodyError(ServiceError):
    status = 400
    code = "malformed-body"


class InvalidInputError(ServiceError):
    """Something in a well-formed body is wrong; `place` reads like `instances[3][2]`."""

    status = 400
    code = "invalid-input"

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place = place


class FeatureMismatchError(InvalidInputError):
    code = "feature-mismatch"


class UnsupportedError(ServiceError):
    status = 400
    code = "unsupported"


class ForbiddenError(ServiceError):
    status = 403
    code = "forbidden"

    def __init__(self) -> None:
        super().__init__("only from this machine and not through a proxy; SCORER_ADMIN_PORT opens a port for this")


class RouteNotFoundError(ServiceError):
    status = 404
    code = "route-not-found"

    def __init__(self, routes: Sequence[str]) -> None:
        super().__init__("no such path; this server scores at " + ", ".join(routes))


class ModelNotFoundError(ServiceError):
    status = 404
    code = "model-not-found"

    def __init__(self, served_name: str, served_version: str) -> None:
        super().__init__(f"no such model or version; this server serves {served_name}, version {served_version}")


class MethodNotAllowedError(ServiceError):
    status = 405
    code = "method-not-allowed"

    def __init__(self, allow: Sequence[str]) -> None:
        super().__init__("method not allowed here; use " + " or ".join(allow))
        self.allow = tuple(allow)


class ReadTimeoutError(ServiceError):
    status = 408
    code = "read-timeout"

    def __init__(self, part: str, timeout_seconds: float) -> None:
        super().__init__(f"the {part} did not arrive within {timeout_seconds:g} seconds")


class SwapUnderWayError(ServiceError):
    status = 409
    code = "swap-under-way"

    def __init__(self) -> None:
        super().__init__("another change of the model is under way; try again when it is over")


class NoPreviousVersionError(ServiceError):
    status = 409
    code = "no-previous-version"

    def __init__(self) -> None:
        super().__init__("there is no previous version to go back to")


class PayloadTooLargeError(ServiceError):
    status = 413
    code = "payload-too-large"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"too many {what}; the limit is {limit} a request")


class TargetTooLongError(ServiceError):
    status = 414
    code = "target-too-long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request target is longer than {limit} bytes")


class UnsupportedMediaTypeError(ServiceError):
    status = 415
    code = "unsupported-media-type"


class ExpectationFailedError(ServiceError):
    status = 417
    code = "expectation-failed"

    def __init__(self) -> None:
        super().__init__("the only expectation this server knows is 100-continue")


class ModelRefusedError(ServiceError):
    status = 422
    code = "model-refused"

    def __init__(self, reason: str, served_version: str) -> None:
        super().__init__(f"{reason}; version {served_version} goes on serving")
        self.reason = reason


class HeadTooLargeError(ServiceError):
    status = 431
    code = "head-too-large"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"too many header {what}; the limit is {limit}")


class PredictionError(ServiceError):
    code = "prediction-failed"

    def __init__(self) -> None:
        super().__init__("the model could not score these rows; the log has the reason under this request id")


class InternalError(ServiceError):
    def __init__(self) -> None:
        super().__init__("an error of this server; the log has it under this request id")


class OverloadedError(ServiceError):
    status = 503
    code = "overloaded"
    retry_after_seconds = 1

    def __init__(self, what: str) -> None:
        super().__init__(f"too much work at the moment ({what}); try again in a second")


class NotReadyError(ServiceError):
    status = 503
    code = "not-ready"
    retry_after_seconds = 1

    def __init__(self, reason: str) -> None:
        super().__init__(f"not ready: {reason}")
        self.reason = reason


ERRORS: tuple[type[ServiceError], ...] = (
    MalformedRequestError,
    MalformedBodyError,
    InvalidInputError,
    FeatureMismatchError,
    UnsupportedError,
    ForbiddenError,
    RouteNotFoundError,
    ModelNotFoundError,
    MethodNotAllowedError,
    ReadTimeoutError,
    SwapUnderWayError,
    NoPreviousVersionError,
    PayloadTooLargeError,
    TargetTooLongError,
    UnsupportedMediaTypeError,
    ExpectationFailedError,
    ModelRefusedError,
    HeadTooLargeError,
    PredictionError,
    InternalError,
    OverloadedError,
    NotReadyError,
)


class StartError(Exception):
    """What stops a process from starting, every fault of it, each with what would be right."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class ModelFileError(StartError):
    """One model file that cannot be served; each reason names it."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(reasons)


class RowsFileError(Exception):
    """A file of rows that cannot be read, scored or written; `place` is a line, a row or a column of it."""

    def __init__(self, name: str, place: str, problem: str) -> None:
        super().__init__(": ".join(part for part in (name, place, problem) if part))
        self.place = place
        self.problem = problem


class FetchError(StartError):
    """One model that cannot be fetched."""

    def __init__(self, reason: str, *, is_temporary: bool = False) -> None:
        super().__init__([reason])
        self.reason = reason
        self.is_temporary = is_temporary
