"""Models from https: a host on the list, an address that may be connected to, a file that arrives whole or not at all."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from service.errors import FetchError
from tests.sources.places import MEGABYTE, Listener, bring, files_in, limits, make_model
from tests.sources.servers import (
    Authority,
    Handler,
    HttpsServer,
    drip,
    file_of,
    in_turn,
    running_https,
    status,
)

MODEL = make_model(3 * MEGABYTE)
PATH = "/churn/model.ubj"


def hosts_of(server: HttpsServer) -> str:
    """The test's server, by name and with its address."""
    return f"localhost:{server.port},127.0.0.1"


def refusal(
    server: HttpsServer, folder: Path, path: str = PATH, hosts: str | None = None, **values: float
) -> FetchError:
    with pytest.raises(FetchError) as caught:
        bring(server.url(path), folder, hosts=hosts_of(server) if hosts is None else hosts, within=limits(**values))
    assert files_in(folder) == []
    assert "\n" not in caught.value.reason
    return caught.value


def test_a_file_from_a_listed_host_is_fetched(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = file_of(MODEL)
    found = bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    assert Path(found.path).read_bytes() == MODEL
    assert (found.path, found.version, found.is_new) == (str(tmp_path / "model.ubj"), "1", True)


def test_golden_rows_beside_the_model_come_along(https: HttpsServer, tmp_path: Path) -> None:
    https.answers |= {PATH: file_of(MODEL), "/churn/golden.json": file_of(b'{"rows": []}')}
    bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    assert files_in(tmp_path) == ["golden.json", "model.ubj"]


def test_a_page_in_the_place_of_golden_rows_is_none(https: HttpsServer, tmp_path: Path) -> None:
    """Web applications answer 200 and their front page to whatever they do not know."""

    def page(handler: Handler) -> None:
        handler.start(Content_Type="text/html", Content_Length=6)
        handler.wfile.write(b"<html>")

    https.answers |= {PATH: file_of(MODEL), "/churn/golden.json": page}
    bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    assert files_in(tmp_path) == ["model.ubj"]


def test_what_is_there_already_is_not_fetched_again(https: HttpsServer, tmp_path: Path) -> None:
    """The server is asked whether it is still the same, by its ETag."""
    https.answers[PATH] = file_of(MODEL)
    first = bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    again = bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    assert (again.digest, again.is_new) == (first.digest, False)
    https.answers[PATH] = file_of(make_model(MEGABYTE, seed=1))
    assert bring(https.url(PATH), tmp_path, hosts=hosts_of(https)).is_new
    assert Path(first.path).stat().st_size == MEGABYTE


# Hosts and addresses.


def test_a_host_off_the_list_is_not_even_connected_to(https: HttpsServer, tmp_path: Path) -> None:
    assert "SCORER_MODEL_HTTPS_HOSTS (none)" in refusal(https, tmp_path, hosts="").reason
    assert https.requests == []


def test_a_listed_name_that_leads_to_loopback_is_refused(https: HttpsServer, tmp_path: Path) -> None:
    """A name is only as good as its DNS: without a mention of its own, 127.0.0.1 stays closed."""
    reason = refusal(https, tmp_path, hosts=f"localhost:{https.port}").reason
    assert "127.0.0.1" in reason
    assert "is not public" in reason
    assert https.requests == []


def test_the_metadata_service_cannot_be_reached_even_if_it_is_listed(https: HttpsServer, tmp_path: Path) -> None:
    everything = f"localhost:{https.port},127.0.0.1,169.254.169.254,0.0.0.0/0"
    https.answers[PATH] = status(302, Location="https://169.254.169.254/latest/meta-data/iam/security-credentials/")
    error = refusal(https, tmp_path, hosts=everything)
    assert "169.254.169.254" in error.reason
    assert not error.is_temporary


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://example.org/model.ubj", "example.org:443 is not among the hosts"),
        ("https://127.0.0.2/model.ubj", "127.0.0.2:443 is not among the hosts"),
        ("//example.org/model.ubj", "example.org:443 is not among the hosts"),
        ("http://localhost/model.ubj", "redirected away from https"),
        ("file:///etc/passwd", "redirected away from https"),
        (PATH, "redirected more than 3 times"),
    ],
)
def test_a_redirect_is_held_to_the_same_rules(https: HttpsServer, tmp_path: Path, location: str, reason: str) -> None:
    https.answers[PATH] = status(302, Location=location)
    error = refusal(https, tmp_path)
    assert reason in error.reason
    assert not error.is_temporary


def test_an_endless_redirect_ends_after_the_third(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = status(307, Location=PATH)
    refusal(https, tmp_path)
    assert https.requests == [PATH] * 4


def test_a_redirect_within_the_list_is_followed(https: HttpsServer, tmp_path: Path) -> None:
    https.answers |= {PATH: status(302, Location="/elsewhere?signature=s3cr3t"), "/elsewhere": file_of(MODEL, breaks=1)}
    listener = Listener()
    found = bring(https.url(PATH), tmp_path, hosts=hosts_of(https), listener=listener)
    assert Path(found.path).read_bytes() == MODEL
    assert "s3cr3t" not in str(listener.notes)


def test_a_certificate_of_an_unknown_authority_is_refused(
    https: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: it will not be trusted at the next attempt either."""
    (tmp_path / "authority").mkdir()
    other = Authority(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(other.path))
    error = refusal(https, tmp_path / "models")
    assert "its certificate is not trusted" in error.reason
    assert "SSL_CERT_FILE" in error.reason
    assert not error.is_temporary


def test_a_certificate_for_another_host_is_refused(https: HttpsServer, authority: Authority, tmp_path: Path) -> None:
    """The address is connected to, and the name is what the certificate must have."""
    with running_https(authority.issue("models.example.com")) as other:
        error = refusal(other, tmp_path)
    assert "its certificate is not trusted" in error.reason
    assert not error.is_temporary


# Faults on the way.


def test_a_break_in_the_middle_goes_on_where_it_was(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = in_turn(file_of(MODEL), file_of(MODEL, breaks=2))
    listener = Listener()
    found = bring(https.url(PATH), tmp_path, hosts=hosts_of(https), listener=listener)
    assert Path(found.path).read_bytes() == MODEL
    ranges = [request for request in https.requests if "bytes=" in request]
    assert ranges == [f"{PATH} bytes=1500000-", f"{PATH} bytes=2250000-"]
    assert len(listener.notes) == 2


def test_a_server_without_ranges_begins_anew(https: HttpsServer, tmp_path: Path) -> None:
    """What had come is thrown away, not written twice."""
    https.answers[PATH] = in_turn(file_of(MODEL), file_of(MODEL, breaks=1, ranges=False))
    found = bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    assert Path(found.path).read_bytes() == MODEL


def test_a_file_that_is_replaced_between_two_attempts_is_not_a_mixture(https: HttpsServer, tmp_path: Path) -> None:
    new = make_model(2 * MEGABYTE, seed=1)
    https.answers[PATH] = in_turn(file_of(MODEL), file_of(MODEL, breaks=1), file_of(new))
    found = bring(https.url(PATH), tmp_path, hosts=hosts_of(https))
    assert Path(found.path).read_bytes() == new


def test_a_server_that_is_busy_is_asked_again(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = in_turn(status(503), file_of(MODEL), status(429), file_of(MODEL))
    listener = Listener()
    found = bring(https.url(PATH), tmp_path, hosts=hosts_of(https), listener=listener)
    assert Path(found.path).read_bytes() == MODEL
    assert ["503" in listener.notes[0], "429" in listener.notes[1]] == [True, True]


def test_a_server_that_stays_busy_is_given_up(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = status(503)
    error = refusal(https, tmp_path)
    assert error.reason.endswith("the server answers 503; 3 attempts")
    assert error.is_temporary
    assert https.requests == [PATH] * 3


@pytest.mark.parametrize(("code", "reason"), [(404, "no such file"), (410, "no such file"), (403, "access denied")])
def test_an_answer_that_will_not_change_is_believed_at_once(
    https: HttpsServer, tmp_path: Path, code: int, reason: str
) -> None:
    https.answers[PATH] = status(code)
    error = refusal(https, tmp_path)
    assert reason in error.reason
    assert https.requests == [PATH]


def test_a_length_that_never_arrives_is_an_error(https: HttpsServer, tmp_path: Path) -> None:
    """A Content-Length beyond what is sent: each attempt gets the rest of nothing."""
    https.answers[PATH] = drip(b"{" * 100, 0, declared=1000)
    error = refusal(https, tmp_path)
    assert "the connection broke" in error.reason
    assert error.is_temporary


def test_one_byte_now_and_then_is_given_up(https: HttpsServer, tmp_path: Path) -> None:
    """The connection lives and the bytes come; at that pace the model would take days."""
    https.answers[PATH] = drip(b"{" * 200, 0.02, declared=MEGABYTE)
    error = refusal(https, tmp_path, stall_seconds=1.0, stall_bytes=1000, attempts=2)
    assert "too slow" in error.reason
    assert "expected at least 1,000" in error.reason
    assert error.is_temporary


def test_silence_is_given_up(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = drip(b"{{", 0.6, declared=MEGABYTE)
    assert "silent for too long" in refusal(https, tmp_path, stall_seconds=0.2, attempts=2).reason


def test_time_is_bounded_as_a_whole(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = drip(b"{" * 100, 0.01, declared=MEGABYTE)
    assert "not fetched within 0.2 seconds" in refusal(https, tmp_path, seconds=0.2).reason


def test_a_length_beyond_the_limit_is_refused_before_it_is_read(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = drip(b"", 0, declared=10**12)
    error = refusal(https, tmp_path)
    assert "1,000,000,000,000 bytes or more; at most 100,000,000 are taken (SCORER_MODEL_MAX_BYTES)" in error.reason
    assert https.requests.count(PATH) == 1


def test_a_file_without_a_length_is_bounded_too(https: HttpsServer, tmp_path: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.start()
        while True:
            handler.wfile.write(b"{" * 65536)

    https.answers[PATH] = endless
    assert "at most 1,000,000 are taken" in refusal(https, tmp_path, max_bytes=MEGABYTE).reason


def test_a_compressed_answer_is_refused(https: HttpsServer, tmp_path: Path) -> None:
    """The digest is that of the file, so that nothing is unpacked on the way, and no bomb either."""
    data = gzip.compress(MODEL)

    def packed(handler: Handler) -> None:
        handler.start(Content_Length=len(data), Content_Encoding="gzip")
        handler.wfile.write(data)

    https.answers[PATH] = packed
    assert "Content-Encoding" in refusal(https, tmp_path).reason


def test_a_page_in_the_place_of_the_model_is_named(https: HttpsServer, tmp_path: Path) -> None:
    https.answers[PATH] = file_of(b"<!DOCTYPE html><html>Sign in</html>")
    assert "this is a web page or XML" in refusal(https, tmp_path).reason


@pytest.mark.parametrize("fault", ["status", "break", "redirect", "type", "none"])
def test_a_signature_in_the_query_is_never_repeated(https: HttpsServer, tmp_path: Path, fault: str) -> None:
    """Neither in the error nor in the notes for the log nor in what is left on the disk."""
    query = "?X-Amz-Credential=AKIACANARY&X-Amz-Signature=c0ffee0ff1ce"
    https.answers[PATH] = {
        "status": status(403),
        "break": drip(b"{", 0, declared=1000),
        "redirect": status(302, Location=f"https://example.org{PATH}{query}"),
        "type": file_of(b"<html>"),
        "none": file_of(MODEL, breaks=1),
    }[fault]
    listener = Listener()
    said = ""
    try:
        found = bring(https.url(PATH + query), tmp_path, hosts=hosts_of(https), listener=listener)
        said = (tmp_path / ".source.json").read_text() + str(found)
    except FetchError as error:
        said = str(error)
    assert said
    for secret in ("AKIACANARY", "c0ffee0ff1ce"):
        assert secret not in said + str(listener.notes)
