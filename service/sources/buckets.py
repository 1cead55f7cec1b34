"""Models in buckets: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage; through obstore.

Credentials are obstore's affair (object_store 0.14, `AmazonS3Builder::build`): of S3 it takes the first of access key, web
identity (IRSA), container credentials (ECS, EKS Pod Identity) and the instance's own role. Its retries are off, as they are
silent and count attempts over a whole file: `fetching` repeats, says so, and begins to count anew when bytes have come.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from service.artifact import FILE_NAMES, ONLY_VERSION, natural_order
from service.errors import FetchError
from service.settings import VERSION, Uri
from service.sources.remote import ChangedError, Opened, Remote, golden_names, listed

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions
    from obstore.store import ClientConfig, ObjectStore

SUFFIXES = (".ubj", ".json", ".bst")
SHOWN_FOLDERS = 5
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class BucketStore:
    """A file in a bucket, or the newest version in a folder of it."""

    uri: Uri
    store: ObjectStore
    environ: Mapping[str, str]

    @classmethod
    def from_uri(cls, uri: Uri, *, stall_seconds: float, timeout_seconds: float) -> BucketStore:
        environ = dict(os.environ)
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=stall_seconds),
            # Of one request with its whole body; obstore's own limit of 30 s would cut large files off.
            "timeout": timedelta(seconds=timeout_seconds),
            # Options given here replace those of the environment (AWS_ALLOW_HTTP), so they are read here.
            "allow_http": is_plain(environ),
        }
        try:
            store = from_url(f"{uri.scheme}://{uri.place}", client_options=options, retry_config={"max_retries": 0})
        except (BaseError, ValueError) as error:
            raise FetchError(f"{uri}: {first_line(error)}") from None
        return cls(uri, store, environ)

    def find_newest(self) -> Remote:
        key = self.uri.path.rstrip("/")
        if key.endswith(SUFFIXES):
            return self._describe(ONLY_VERSION, "", key)
        here, folders = self._list(key)
        versions = [name for name in folders if VERSION.fullmatch(name)]
        for name in FILE_NAMES:
            if name in here:
                return self._describe(ONLY_VERSION, "", join(key, name))
        for version in sorted(versions, key=lambda name: (natural_order(name), name), reverse=True):
            # A folder that is still being written has no model yet; the one before it has.
            files, _ = self._list(join(key, version))
            for name in FILE_NAMES:
                if name in files:
                    return self._describe(version, version, join(key, version, name))
        expected = "expected <version>/model.ubj or <version>/model.json under this key"
        others = ", ".join(sorted(folders - set(versions))[:SHOWN_FOLDERS])
        raise FetchError(f"{self.uri}: {f'{expected}, got {others}' if others else f'nothing there; {expected}'}")

    def _list(self, folder: str) -> tuple[set[str], set[str]]:
        """Names of the files and of the folders in a folder."""
        try:
            found = obstore.list_with_delimiter(self.store, folder)
        except (BaseError, OSError, ValueError) as error:
            raise self._explain(error, folder, "list") from None
        files = {PurePosixPath(entry["path"]).name for entry in found["objects"]}
        return files, {PurePosixPath(prefix).name for prefix in found["common_prefixes"]}

    def _describe(self, version: str, folder: str, key: str) -> Remote:
        size, mark = self._head(key)
        return Remote(version, folder, key, size, mark, *self._find_golden(key))

    def _find_golden(self, key: str) -> tuple[str, str]:
        """Key and mark; empty if there are none."""
        path = PurePosixPath(key)
        for golden in (str(path.with_name(name)) for name in golden_names(path.name)):
            try:
                return golden, self._head(golden)[1]
            except FetchError as error:
                if error.is_temporary:
                    raise
                # Not there; S3 answers 403 for that to those who may not list.
        return "", ""

    def _head(self, key: str) -> tuple[int, str]:
        try:
            meta = obstore.head(self.store, key)
        except (BaseError, OSError, ValueError) as error:
            raise self._explain(error, key, "read") from None
        return meta["size"], mark_of(meta)

    def open(self, key: str, start: int, mark: str) -> Opened:
        options: GetOptions = {"range": {"offset": start}, "if_match": mark} if start else {}
        try:
            answer = obstore.get(self.store, key, options=options)
        except (BaseError, OSError, ValueError) as error:
            raise self._explain(error, key, "read") from None
        meta = answer.meta
        chunks = self._read(answer.stream(min_chunk_size=1), key)  # as they come, so that a slow store is noticed
        return Opened(answer.range[0], meta["size"], mark_of(meta), bool(meta["e_tag"]), chunks, close=lambda: None)

    def _read(self, stream: BytesStream, key: str) -> Iterator[bytes]:
        try:
            yield from as_bytes(stream)
        except (BaseError, OSError) as error:
            raise self._explain(error, key, "read") from None

    def _explain(self, error: Exception, key: str, verb: str) -> FetchError:
        """obstore's error in the operator's words. Its own text holds URLs, which may be signed, and the store's answer."""
        what = f"{self.uri.scheme}://{self.uri.place}/{key}"
        text = str(error)
        status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else 0
        code = found[1] if (found := re.search(r"<Code>(\w+)</Code>", text)) else ""
        said = " ".join(filter(None, (str(status or ""), code)))
        if status in (412, 416):
            return ChangedError(what)
        if is_about_credentials(text, self.environ):
            return FetchError(
                f"{what}: no credentials: {self._credentials()}: {cause(text)}",
                is_temporary=status >= 500 or status == 0,
            )
        if code == "NoSuchBucket":
            return FetchError(f"{what}: no such bucket ({self._place()})")
        if status == 404:
            return FetchError(f"{what}: no such key, or no such bucket ({self._place()})")
        if status in (401, 403):  # a listing has no error class of its own for it
            return FetchError(
                f"{what}: access denied ({said}) to {self._credentials()}; expected the right to {verb} it ({self._place()})"
            )
        if "Received redirect" in text or status == 301:
            return FetchError(f"{what}: the bucket is in another region ({self._place()}); set AWS_REGION")
        if 400 <= status < 500 and status not in (408, 425, 429):
            return FetchError(f"{what}: the store answers {said} ({self._place()})")
        return FetchError(f"{what}: {said or cause(text)} ({self._place()})", is_temporary=True)

    def _place(self) -> str:
        """Where it was looked for, as far as the environment says."""
        names: dict[str, Iterable[str]] = {
            "s3": ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "az": ("AZURE_STORAGE_ACCOUNT_NAME",),
        }
        known = [
            f"{name}={without_user(self.environ[name])}"
            for name in names.get(self.uri.scheme, ())
            if name in self.environ
        ]
        return ", ".join(known) or (
            "AWS_REGION is not set: us-east-1" if self.uri.scheme == "s3" else "as the URI says"
        )

    def _credentials(self) -> str:
        return s3_credentials(self.environ) if self.uri.scheme == "s3" else "the credentials of the environment"


def s3_credentials(environ: Mapping[str, str]) -> str:
    """Whom the store is asked as: the first of these that object_store finds."""
    if environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        return "nobody in particular (AWS_SKIP_SIGNATURE)"
    for names, what in (
        (("AWS_ACCESS_KEY_ID",), "the access key"),
        (("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"), "the role of the service account (IRSA)"),
        (("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",), "the role of the task (ECS)"),
        (
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            "the role of the service account (EKS Pod Identity)",
        ),
    ):
        if all(environ.get(name) for name in names):
            return f"{what} in {listed(names)}"
    return "the role of the instance, as the environment names no access key, no IRSA and no Pod Identity"


def is_plain(environ: Mapping[str, str]) -> bool:
    """Whether the operator named an endpoint without TLS, as S3-compatible stores within a cluster have it."""
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or environ.get("AWS_ENDPOINT", "")
    is_told = any(environ.get(name, "").lower() == "true" for name in ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP"))
    return is_told or endpoint.startswith("http://")


def is_about_credentials(text: str, environ: Mapping[str, str]) -> bool:
    """Whether it failed before the store was asked: at a token, at STS, or at the address that hands out credentials."""
    asked = text.partition("\n")[0].partition(" - ")[0]
    address = environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return bool(
        re.search(
            r"Failed to read (EKS )?token file|AssumeRole|POST REDACTED|performing \w+ http://169\.254\.|: Missing ",
            asked,
        )
    ) or bool(address and f"performing GET {address} " in asked)


def cause(text: str) -> str:
    """What lies under "error sending request", from the debug text that obstore 0.12 appends."""
    for pattern, words in (
        (r"token file '([^']*)': No such file", r"no such file: \1"),
        (r"status code: (\d{3})", r"answer \1"),
        (r"kind: ConnectionRefused", "connection refused"),
        (r"dns error", "the host cannot be resolved"),
        (
            r"UnknownIssuer|InvalidCertificate",
            "its certificate is not trusted; SSL_CERT_FILE may name more authorities",
        ),
        (r"kind: Timeout|TimedOut", "silent for too long"),
        (r"BadScheme", "expected https"),
        (r"Missing\w+", r"\g<0>"),
        (r"kind: (Connect|Request|Body|Decode|Interrupted)", "the connection broke"),
    ):
        if found := re.search(pattern, text):
            return found.expand(words)
    return "it could not be read"


def first_line(error: Exception) -> str:
    return without_user(str(error).partition("\n")[0])


def without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url).partition("?")[0]


def mark_of(meta: Any) -> str:
    return meta["e_tag"] or f"{meta['last_modified']} {meta['size']}"


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def as_bytes(stream: Iterable[Any]) -> Iterator[bytes]:
    """obstore 0.12 yields bytes, though its hints promise a class of its own."""
    return (bytes(chunk) for chunk in stream)
