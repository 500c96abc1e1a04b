"""Files of an object store, such as s3://bucket/train-0000.tar, through fsspec: listed, and read whole or in parts.

S3 takes credentials, region and endpoint as all AWS tools do: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile
(AWS_PROFILE), or none for a public bucket; and AWS_ENDPOINT_URL, or endpoint_url of the profile, for a bucket that is not
at Amazon.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, TypeVar

from transfer_learning.errors import UserError, needs_extra

S3 = "s3://"
SECONDS, ATTEMPTS = 30, 3  # per request to S3
CONNECTIONS = 64  # to S3 at once; more threads wait
TRIES, WAIT_SECONDS = 3, 2.0  # of a read; the wait is doubled after each
SLOWEST = 100_000  # bytes per second that a store has to take
BLOCK = 8 << 20  # bytes that are read at once where a file is read from its beginning
FINAL = {"FileNotFoundError", "PermissionError", "IsADirectoryError", "ValueError"}  # errors that would come again
FINAL |= {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}  # of botocore
STATES = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")  # the first that a store has
Result = TypeVar("Result")


def is_address(place: str) -> bool:
    """Whether `place` is in an object store rather than on a disk: ``s3://bucket/folder``."""
    return "://" in place


def files_below(address: str) -> dict[str, tuple[str, int]]:
    """The files below ``s3://bucket/folder``, or the one file: address -> (what changes when its content does, bytes).

    Raises:
        UserError: the store cannot be reached or refuses, or there is no such bucket.
    """
    store, path = file_system(address)
    start = address.rstrip("/").removesuffix(path)
    found = _tried(address, lambda: store.find(path, detail=True))
    return {
        start + name: (next((str(info[state]) for state in STATES if state in info), ""), info["size"])
        for name, info in sorted(found.items())
        if not name.endswith("/")  # web consoles mark a folder by an empty object of its name
    }


def read_range(address: str, offset: int, length: int) -> bytes:
    """Reads `length` bytes; tries several times, each with a limit of time.

    Raises:
        UserError: the store cannot be reached or refuses, or the file has ended.
    """
    store, path = file_system(address)

    def read() -> bytes:
        content = store.cat_file(path, start=offset, end=offset + length)
        if len(content) < length:
            raise FileNotFoundError(f"it ends before byte {offset + length:,}")
        return content

    return _tried(address, read) if length else b""


def contents(address: str, num_bytes: int) -> Iterator[bytes]:
    """Reads a file of about that size: a small one by one request, another in parts; raises as `read_range`."""
    store, path = file_system(address)
    if num_bytes <= BLOCK:
        yield _tried(address, lambda: store.cat_file(path))
    else:
        with opened(address) as file:
            yield from iter(partial(file.read, BLOCK), b"")


def opened(address: str) -> BinaryIO:
    """Opens a file to read it from its beginning, some MB at a time; it and its methods raise as `read_range`."""
    store, path = file_system(address)
    from fsspec.spec import AbstractBufferedFile

    class File(AbstractBufferedFile):
        def _fetch_range(self, start: int, end: int) -> bytes:
            return read_range(address, start, end - start)

    return File(store, path, block_size=BLOCK, size=_tried(address, lambda: store.info(path)["size"]))


def write_object(store: Any, path: str, content: bytes) -> None:
    """Writes an object of a file system of fsspec, which appears once it is whole.

    Raises:
        TimeoutError: the store takes too long. SECONDS does not hold while aiohttp sends.
        Exception: what the store raises.
    """
    from fsspec.asyn import FSTimeoutError, sync

    if not store.async_impl:
        return store.pipe_file(path, content)
    seconds = SECONDS * ATTEMPTS + len(content) / SLOWEST
    try:
        sync(store.loop, store._pipe_file, path, content, timeout=seconds)
    except FSTimeoutError:
        raise TimeoutError(f"{len(content):,} bytes were not written within {seconds:.0f} s") from None


def file_system(address: str) -> tuple[Any, str]:
    """The file system of fsspec that has an address, and the path in it."""
    with needs_extra("store"):
        import fsspec

        if address.startswith(S3):
            return _tried(address, _s3), address.removeprefix(S3).rstrip("/")
    try:
        return fsspec.url_to_fs(address.rstrip("/"))
    except (ValueError, ImportError) as error:  # an unknown protocol, or one that needs another package
        raise UserError(f"{address} cannot be read ({error}); give a folder or s3://BUCKET/FOLDER.") from None


_stores: dict[tuple, Any] = {}


def _s3() -> Any:
    """One for all threads; another after a fork, because its connections and its thread belong to one process, and where
    the variables with credentials and endpoint have changed.
    """
    key = os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    if key not in _stores:
        from botocore.session import Session
        from fsspec.asyn import reset_lock
        from s3fs import S3FileSystem

        if not _stores:
            os.register_at_fork(after_in_child=reset_lock)  # fsspec itself leaves the lock as another thread had it
        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        limits = {"connect_timeout": SECONDS, "read_timeout": SECONDS, "max_pool_connections": CONNECTIONS}
        store = S3FileSystem(
            anon=Session().get_credentials() is None,  # a public bucket needs none
            config_kwargs=limits | {"retries": retries},
            client_kwargs={"region_name": os.environ.get("AWS_REGION")},  # botocore takes only AWS_DEFAULT_REGION
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,  # reads a whole file by one request
        )
        store.retries = 1  # those of botocore are enough
        _stores.setdefault(key, store)  # threads may come here at once; a store connects when it is used
    return _stores[key]


def _tried(address: str, work: Callable[[], Result]) -> Result:
    """Calls `work` until it succeeds, at most `TRIES` times."""
    for number in range(TRIES):
        try:
            return work()
        except ImportError:  # a missing extra
            raise
        except Exception as error:  # each store has errors of its own
            reason = " ".join(reason_of(error).split()) or type(error).__name__
            if FINAL & {kind.__name__ for kind in type(error).__mro__}:
                break
        if number < TRIES - 1:
            time.sleep(WAIT_SECONDS * 2**number)
    raise UserError(
        f"{address} cannot be read ({reason.strip(' .')[:300]}); check the name, your credentials and the network (for a "
        "bucket that is not at Amazon, AWS_ENDPOINT_URL), and start again: a run continues from its last checkpoint."
    )


def reason_of(error: Exception) -> str:
    """An error of a store as text; that of S3 with its code."""
    answer = (getattr(error.__cause__, "response", None) or {}).get("Error", {})
    return ": ".join(answer[key] for key in ("Code", "Message") if key in answer) or str(error) or str(error.__cause__)
