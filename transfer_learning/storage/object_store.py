"""Files of an object store, such as s3://bucket/train-0000.tar, through fsspec: listed, and read in parts.

S3 takes credentials and endpoint as all AWS tools do: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; and
AWS_ENDPOINT_URL for a bucket that is not at Amazon.
"""

import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, BinaryIO, TypeVar

from transfer_learning.errors import UserError, needs_extra

S3 = "s3://"
SECONDS, ATTEMPTS = 30, 3  # per request to S3
TRIES, WAIT_SECONDS = 3, 2.0  # of a read; the wait is doubled after each
BLOCK = 8 << 20  # bytes that are read at once where a file is read from its beginning
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # errors that would come again
Result = TypeVar("Result")


def is_address(place: str) -> bool:
    """Whether `place` is in an object store rather than on a disk: ``s3://bucket/folder``."""
    return "://" in place


def files_below(address: str) -> dict[str, str]:
    """The files below ``s3://bucket/folder``, or the one file: address -> what changes when its content does.

    Raises:
        UserError: the store cannot be reached or refuses, or there is no such folder.
    """
    store, path = file_system(address)

    def find() -> list[dict[str, Any]]:
        if store.isfile(path):
            return [store.info(path)]
        folders = store.walk(path, detail=True, on_error="raise")
        return [info for _, _, files in folders for info in files.values()]

    states = ("size", "ETag", "etag", "md5Hash", "LastModified", "mtime", "updated")
    return {
        address[: len(address) - len(path)] + info["name"]: " ".join(str(info[name]) for name in states if name in info)
        for info in sorted(_tried(address, find), key=lambda info: info["name"])
    }


def read_range(address: str, offset: int, length: int) -> bytes:
    """Reads `length` bytes; tries several times, each with a limit of time.

    Raises:
        UserError: the store cannot be reached or refuses, or the file has ended.
    """
    store, path = file_system(address)

    options = {"seekable": True} if address.startswith(S3) else {}  # else Arrow's file is not, at byte 0

    def read() -> bytes:
        content = store.cat_file(path, start=offset, end=offset + length, **options)
        if len(content) < length:
            raise FileNotFoundError(f"it ends before byte {offset + length:,}")
        return content

    return _tried(address, read) if length else b""


def opened(address: str) -> BinaryIO:
    """Opens a file to read it from its beginning, some MB at a time; it and its methods raise as `read_range`."""
    store, path = file_system(address)
    return io.BufferedReader(_Reading(address, _tried(address, lambda: store.info(path)["size"])), BLOCK)


class _Reading(io.RawIOBase):
    def __init__(self, address: str, size: int):
        self._address, self._size, self._position = address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = read_range(self._address, self._position, max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def file_system(address: str) -> tuple[Any, str]:
    """The file system of fsspec that has an address, and the path in it."""
    with needs_extra("store"):
        import fsspec

        if address.startswith(S3):
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            path = address.removeprefix(S3).rstrip("/")
            return _s3(endpoint, path.partition("/")[0]), path
    try:
        return fsspec.url_to_fs(address.rstrip("/"))
    except (ValueError, ImportError) as error:  # an unknown protocol, or one that needs another package
        raise UserError(f"{address} cannot be read ({error}); give a folder or s3://BUCKET/FOLDER.") from None


@cache
def _s3(endpoint: str | None, bucket: str) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper  # s3fs excludes current versions of boto3
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    region = None
    if not endpoint:  # Arrow does not follow Amazon to the region of a bucket
        with suppress(OSError, ValueError):  # no network, or no such bucket: the first request says so
            region = resolve_s3_region(bucket)
    strategy = AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    limits = {"connect_timeout": SECONDS, "request_timeout": SECONDS, "retry_strategy": strategy}
    return ArrowFSWrapper(S3FileSystem(endpoint_override=endpoint, region=region, **limits))


def _tried(address: str, work: Callable[[], Result]) -> Result:
    """Calls `work` until it succeeds, at most `TRIES` times."""
    for number in range(TRIES):
        try:
            return work()
        except Exception as error:  # each store has errors of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FINAL):
                break
        if number < TRIES - 1:
            time.sleep(WAIT_SECONDS * 2**number)
    raise UserError(
        f"{address} cannot be read ({reason.strip(' .')[:300]}); check its name, your credentials and the network (for a "
        "bucket that is not at Amazon, AWS_ENDPOINT_URL), and start again: a run continues from its last checkpoint."
    )
