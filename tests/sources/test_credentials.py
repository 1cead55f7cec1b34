"""Whom the store is asked as: access key, service account (IRSA, EKS Pod Identity), nobody."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.errors import FetchError
from service.sources.buckets import s3_credentials
from tests.sources.places import bring, limits, make_model
from tests.sources.servers import BUCKET, Handler, HttpsServer, Moto, Proxy, file_of, running_proxy, status

URI = f"s3://{BUCKET}/model.ubj"
TOKEN = "token-of-this-pod"


@pytest.fixture
def proxy(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """moto with a model in it, through a proxy that sees who asks; the environment has no access key."""
    moto.put("model.ubj", make_model(1000))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with running_proxy(moto.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", between.url)
        yield between


def signers(proxy: Proxy) -> set[str]:
    """The key ids that the store was asked with; empty ones for unsigned requests."""
    return {found[1] if (found := re.search(r"Credential=(\w+)/", head)) else "" for head in proxy.requests}


class Agent(BaseHTTPRequestHandler):
    """Answers as the Pod Identity agent on a node does, to those who show the pod's token."""

    def do_GET(self) -> None:
        is_known = self.headers.get("Authorization") == TOKEN
        expiration = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        credentials = {
            "AccessKeyId": "ASIAOFPODIDENTITY",
            "SecretAccessKey": "secret",
            "Token": "session-token",
            "AccountId": "123456789012",
            "Expiration": expiration,
        }
        body = json.dumps(credentials).encode() if is_known else b"Unauthorized"
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def running_agent() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/credentials"
        finally:
            server.shutdown()
            thread.join()


def test_a_model_is_fetched_as_the_pod_with_a_local_stand_in_for_the_pod_identity_agent(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two variables that EKS sets, the token file's content as Authorization, the session token on each request."""
    token = tmp_path / "eks-pod-identity-token"
    token.write_text(TOKEN)
    with running_agent() as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        assert bring(URI, tmp_path / "models").size == 1000
    assert signers(proxy) == {"ASIAOFPODIDENTITY"}
    assert all("x-amz-security-token: session-token" in head.lower() for head in proxy.requests)


def test_a_token_that_the_agent_does_not_know_is_told_with_a_local_stand_in_for_the_pod_identity_agent(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "eks-pod-identity-token"
    token.write_text("token-of-another-pod")
    with running_agent() as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        with pytest.raises(FetchError) as caught:
            bring(URI, tmp_path / "models")
    assert "no credentials: the role of the service account (EKS Pod Identity)" in caught.value.reason
    assert "answer 401" in caught.value.reason
    assert "token-of" not in caught.value.reason
    assert proxy.requests == []


def test_a_token_file_that_is_not_mounted_is_named(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/no/such/token")
    with pytest.raises(FetchError, match="no such file: /no/such/token"):
        bring(URI, tmp_path)


def test_an_agent_that_is_not_there_is_told(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    with pytest.raises(FetchError, match=r"EKS Pod Identity.*connection refused; 2 attempts") as caught:
        bring(URI, tmp_path, within=limits(attempts=2))
    assert caught.value.is_temporary


ASSUMED = b"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAOFIRSA</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
<SessionToken>session-token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


def assume(handler: Handler) -> None:
    handler.start(Content_Length=len(ASSUMED))
    handler.wfile.write(ASSUMED)


@pytest.fixture
def service_account(https: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HttpsServer:
    """What EKS sets for IRSA. moto's STS does not find the Action where object_store 0.14 has it, in the query."""
    token = tmp_path / "token"
    token.write_text("header.payload.signature")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", https.url("/", host="127.0.0.1"))
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models-reader")
    return https


def test_a_model_is_fetched_as_the_service_account_with_a_local_stand_in_for_sts(
    proxy: Proxy, service_account: HttpsServer, tmp_path: Path
) -> None:
    """IRSA: the token is exchanged over TLS, and its session signs what is asked of the store."""
    service_account.answers["/"] = assume
    assert bring(URI, tmp_path / "models").size == 1000
    assert signers(proxy) == {"ASIAOFIRSA"}
    assert all("x-amz-security-token: session-token" in head.lower() for head in proxy.requests)
    assert "Action=AssumeRoleWithWebIdentity" in service_account.requests[0]
    assert "WebIdentityToken=header.payload.signature" in service_account.requests[0]


def test_a_role_that_is_denied_is_told_with_a_local_stand_in_for_sts(
    proxy: Proxy, service_account: HttpsServer, tmp_path: Path
) -> None:
    service_account.answers["/"] = status(403)
    with pytest.raises(FetchError) as caught:
        bring(URI, tmp_path / "models")
    assert "no credentials: the role of the service account (IRSA)" in caught.value.reason
    assert "answer 403" in caught.value.reason
    assert "header.payload" not in caught.value.reason
    assert proxy.requests == []


def test_a_role_that_cannot_be_assumed_is_told(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/such/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models-reader")
    with pytest.raises(FetchError, match=r"service account \(IRSA\).*no such file: /no/such/token"):
        bring(URI, tmp_path)


def test_a_public_bucket_is_read_unsigned(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(FetchError, match="nobody in particular"):  # moto's bucket is not public
        bring(URI, tmp_path)
    assert signers(proxy) == {""}


@pytest.mark.parametrize(
    ("names", "whom"),
    [
        ("", "the role of the instance"),
        ("AWS_ROLE_ARN", "the role of the instance"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "EKS Pod Identity"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE AWS_ROLE_ARN AWS_CONTAINER_CREDENTIALS_FULL_URI", "IRSA"),
        ("AWS_ACCESS_KEY_ID AWS_WEB_IDENTITY_TOKEN_FILE AWS_ROLE_ARN", "the access key"),
    ],
)
def test_an_error_names_the_credentials_that_were_tried(names: str, whom: str) -> None:
    """In the order in which object_store looks for them; never a value."""
    said = s3_credentials(dict.fromkeys(names.split(), "s3cr3t"))
    assert whom in said
    assert "s3cr3t" not in said


# The other clouds, as far as a server on this machine can stand for them.


def test_google_cloud_storage_is_read_with_a_local_stand_in(
    https: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {
        "gcs_base_url": https.url(""),
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    model = make_model(100_000)
    https.answers["/models/churn/model.ubj"] = file_of(model, breaks=2)
    found = bring("gs://models/churn/model.ubj", tmp_path)
    assert Path(found.path).read_bytes() == model


def test_azure_blob_storage_is_read_with_a_local_stand_in(
    https: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", https.url(""))
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    model = make_model(100_000)
    https.answers["/models/churn/model.ubj"] = file_of(model, breaks=2)
    found = bring("az://models/churn/model.ubj", tmp_path)
    assert Path(found.path).read_bytes() == model


def test_azure_without_an_account_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(FetchError, match="Account must be specified"):
        bring("az://models/churn/model.ubj", tmp_path)
