"""moto, a certificate authority, and an environment that leads obstore to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources.servers import Authority, HttpsServer, Moto, running_https, running_moto

# Whatever the machine has of these would change what is tested.
FOREIGN = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "SSL_CERT_DIR",
)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Moto]:
    with running_moto() as moto:
        yield moto


@pytest.fixture
def moto(moto_server: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    """An empty bucket, and an environment with credentials for it."""
    moto_server.empty()
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in moto_server.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return moto_server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def localhost_certificate(authority: Authority) -> Path:
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture
def https(authority: Authority, localhost_certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsServer]:
    """An https server that is trusted here."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with running_https(localhost_certificate) as server:
        yield server
