"""The client of S3, one a process, and what its errors mean for a run.

boto3 is imported when it is first asked for. Credentials, region and endpoint come from where it
looks for them (environment, profile, the machine's role; AWS_ENDPOINT_URL_S3 for another service
than AWS), never from a run file. What may pass (500, 503, timeouts) is tried `TRIES` times.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from namedmask.errors import InputError, MissingExtraError, NamedMaskError

TRIES = 8

_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError",
)  # fmt: skip
_CONDITION_FAILED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN_TO_SERVICE = ("NotImplemented", "501")


class ConditionFailed(OSError):
    """Another content is there than the one that was named."""

    collided = False  # with a write under way, whose outcome is open


def client() -> Any:
    """Return the boto3 client of this process; raises as `client_of`."""
    return client_of(os.getpid())


@lru_cache(maxsize=1)
def client_of(process: int) -> Any:
    """Return the boto3 client of a process, this one's.

    Raises:
        MissingExtraError: boto3 is not installed.
        InputError: the endpoint or the profile that the environment names is none.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MissingExtraError(
            f"s3:// places need boto3, which is not installed ({error.name}). "
            "Run: pip install boto3"
        ) from None
    settings = Config(
        retries={"mode": "standard", "total_max_attempts": TRIES},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
    )
    try:
        return boto3.session.Session().client("s3", config=settings)
    except (BotoCoreError, ValueError) as error:
        raise InputError(
            f"S3 cannot be used as the environment describes it: {error}. Check AWS_PROFILE, "
            "AWS_REGION and AWS_ENDPOINT_URL_S3."
        ) from error


@contextmanager
def told(place: object, bucket: str) -> Iterator[None]:
    """Let errors of boto3 out as FileNotFoundError, ConditionFailed or an error of ours."""
    endpoint = client().meta.endpoint_url
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        answer = error.response
        code = str(answer["Error"].get("Code", ""))
        status = answer["ResponseMetadata"].get("HTTPStatusCode", 0)
        raise _of_answer(place, bucket, code, status, endpoint) from error
    except BotoCoreError as error:
        if type(error).__name__ in _NO_CREDENTIALS:
            raise InputError(
                f"{place}: no credentials for S3: {error}. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the machine a role; on a cluster, "
                "on every node."
            ) from error
        raise NamedMaskError(
            f"{place}: {endpoint} did not answer in {TRIES} tries: {error}. What is "
            "committed is kept; run the same command again. Another service than AWS is named by "
            "AWS_ENDPOINT_URL_S3."
        ) from error


def _of_answer(place: object, bucket: str, code: str, status: int, endpoint: str) -> Exception:
    if code == "NoSuchBucket":
        return InputError(
            f"{place}: bucket '{bucket}' does not exist at {endpoint}. Make it, correct the "
            "name, or name another service by AWS_ENDPOINT_URL_S3."
        )
    if code in ("NoSuchKey", "404"):
        return not_there(place)
    if code in _CONDITION_FAILED:
        failed = ConditionFailed(errno.EEXIST, "was changed meanwhile", str(place))
        failed.collided = code in _CONDITION_FAILED[2:]
        return failed
    if status in (401, 403) or code in ("InvalidAccessKeyId", "ExpiredToken", "InvalidToken"):
        return InputError(
            f"{place}: {endpoint} refuses access ({code}); expected the right to list the bucket "
            "and to get, put and delete its objects. Check the credentials that boto3 finds "
            "(AWS_ACCESS_KEY_ID, AWS_PROFILE, the machine's role) and the bucket's policy."
        )
    if code in _UNKNOWN_TO_SERVICE:
        return InputError(
            f"{place}: {endpoint} knows no conditional writes, which keep two writers apart. Use a "
            "newer version of that service, or a run.out on disk."
        )
    return NamedMaskError(
        f"{place}: {endpoint} answered {code} ({status}), in the end after {TRIES} tries. What is "
        "committed is kept; run the same command again."
    )


def not_there(place: object) -> FileNotFoundError:
    """Return the error of an object that is missing."""
    return FileNotFoundError(errno.ENOENT, "no such object", str(place))
