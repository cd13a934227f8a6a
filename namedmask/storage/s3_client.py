"""The S3 client, one per process, and the translation of its errors into errors of this package.

boto3 is imported on first use. It finds the credentials, the region and the endpoint in the
environment, in a profile or in the machine's role; a run file never contains them.
AWS_ENDPOINT_URL_S3 is the address of a service other than AWS. A request that fails with a
transient error (500, 503 or a timeout) is tried up to `TRIES` times.
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
"""Maximum number of attempts per request."""

_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError",
)  # fmt: skip
_CONDITION_FAILED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN_TO_SERVICE = ("NotImplemented", "501")


class ConditionFailed(OSError):
    """The condition of a request failed, because the object is not the expected version."""

    collided = False  # True if another write is in progress, with an unknown result


def client() -> Any:
    """Return the boto3 client of this process.

    Raises:
        MissingExtraError, InputError: as `client_of`.
    """
    return client_of(os.getpid())


@lru_cache(maxsize=1)
def client_of(process: int) -> Any:
    """Return the boto3 client of this process, whose id is `process`.

    The id is the key of the cache, so that a forked process gets a client of its own.

    Raises:
        MissingExtraError: boto3 is not installed.
        InputError: the environment names an invalid endpoint or a profile that does not exist.
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
            f"the S3 settings in the environment cannot be used: {error}. Check AWS_PROFILE, "
            "AWS_REGION and AWS_ENDPOINT_URL_S3."
        ) from error


@contextmanager
def translated_errors(place: object, bucket: str) -> Iterator[None]:
    """Translate boto3's errors in the block.

    Raises:
        FileNotFoundError: the object does not exist.
        ConditionFailed: the condition of the request failed.
        InputError: the bucket, the credentials, the access rights or the service are at fault.
        NamedMaskError: the request still failed after `TRIES` attempts.
    """
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
                f"{place}: there are no credentials for S3: {error}. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role. On a cluster, "
                "do so on every node."
            ) from error
        raise NamedMaskError(
            f"{place}: {endpoint} did not answer in {TRIES} attempts: {error}. All committed "
            "work is kept. Run the same command again. For another service than AWS, set "
            "AWS_ENDPOINT_URL_S3."
        ) from error


def _of_answer(place: object, bucket: str, code: str, status: int, endpoint: str) -> Exception:
    if code == "NoSuchBucket":
        return InputError(
            f"{place}: bucket '{bucket}' does not exist at {endpoint}. Create the bucket, "
            "correct its name, or set AWS_ENDPOINT_URL_S3 to another service."
        )
    if code in ("NoSuchKey", "404"):
        return missing_object(place)
    if code in _CONDITION_FAILED:
        failed = ConditionFailed(errno.EEXIST, "the object is not the expected version", str(place))
        failed.collided = code in _CONDITION_FAILED[2:]
        return failed
    if status in (401, 403) or code in ("InvalidAccessKeyId", "ExpiredToken", "InvalidToken"):
        return InputError(
            f"{place}: {endpoint} refuses access ({code}). A run needs the right to list the "
            "bucket and to get, put and delete its objects. Check the credentials that boto3 finds "
            "(AWS_ACCESS_KEY_ID, AWS_PROFILE, the machine's role) and the bucket's policy."
        )
    if code in _UNKNOWN_TO_SERVICE:
        return InputError(
            f"{place}: {endpoint} has no conditional writes, which keep two processes from "
            "writing to the same run.out. Use a newer version of that service, or a run.out on "
            "disk."
        )
    return NamedMaskError(
        f"{place}: {endpoint} answered {code} ({status}) to the last of up to {TRIES} attempts. "
        "All committed work is kept. Run the same command again."
    )


def missing_object(place: object) -> FileNotFoundError:
    """Return the error for an object that does not exist."""
    return FileNotFoundError(errno.ENOENT, "no such object", str(place))
