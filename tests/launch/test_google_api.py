"""Google's APIs: what an error means, what a request is, and the addresses and credentials of its client."""

from types import SimpleNamespace

import pytest

from tests.launch.conftest import job_of
from tests.launch.rest import Fault, Refused
from tpullm.launch import google_api, google_batch
from tpullm.launch.watch import by_attempt
from tpullm.system.errors import TryAgain, UserError

JOB = job_of("batch", "collect", machine="n2-standard-8")
RATE = "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute'"


@pytest.mark.parametrize(
    "code, status, message, kind, says",
    [
        (429, "RESOURCE_EXHAUSTED", "Quota 'CPUS' exceeded. Limit: 0.", UserError, "quota: .*CPUS.*; ask for more"),
        (429, "RESOURCE_EXHAUSTED", RATE, TryAgain, "429 Quota exceeded"),
        (429, "RESOURCE_EXHAUSTED", "quota: RATE_LIMIT_EXCEEDED", TryAgain, "429 quota"),
        (429, "RESOURCE_EXHAUSTED", "try later", TryAgain, "429 try later"),
        (408, "DEADLINE_EXCEEDED", "too slow", TryAgain, "408 too slow"),
        (500, "INTERNAL", "a fault", TryAgain, "500 a fault"),
        (503, "UNAVAILABLE", "away", TryAgain, "503 away"),
        (400, "FAILED_PRECONDITION", "it is not ready", TryAgain, "400 it is not ready"),
        (400, "INVALID_ARGUMENT", "no such field", UserError, r"CreateJob: refused \(no such field\)"),
        (401, "UNAUTHENTICATED", "who?", UserError, "Google credentials: .* run `gcloud auth"),
        (403, "PERMISSION_DENIED", "no role", UserError, r"CreateJob: not allowed \(no role\); docs/en/google-cloud"),
        (404, "NOT_FOUND", "absent", google_api.Missing, "absent"),
        (409, "ALREADY_EXISTS", "there", google_api.Exists, "there"),
    ],
)
def test_what_an_error_means(batch, code, status, message, kind, says):
    (request,) = google_batch.requests(JOB, 1)
    batch.faults.append(Fault("POST", "jobs", Refused(code, status, message)))
    with pytest.raises((UserError, google_api.Missing, google_api.Exists), match=says) as error:
        google_api.send(request)
    assert type(error.value) is kind and "\n" not in str(error.value)
    assert batch.count("POST", "jobs") == 1, "the library sends nothing again by itself"


def test_all_pages_of_a_list_are_read_and_only_the_jobs_own_resources_sorted_by_attempt(batch):
    """The fake has one job a page; names sort otherwise than numbers."""
    for attempt in (10, 9, 2):
        google_api.send(*google_batch.requests(JOB, attempt))
    assert [each.attempt for each in google_batch.observe(JOB)] == [2, 9, 10]
    listed = [{"name": f"projects/p/jobs/{name}"} for name in ("tiny-collect-2", "tiny-collect-1", "tiny-collect-x-1")]
    listed += [{"name": f"projects/p/jobs/{name}"} for name in ("tiny-collect", "tiny-collect-", "a-tiny-collect-3")]
    read = by_attempt(JOB, listed, lambda job, attempt, found: SimpleNamespace(attempt=attempt, name=found["name"]))
    assert [(each.attempt, each.name[-2:]) for each in read] == [(1, "-1"), (2, "-2")]
    batch.faults.append(Fault("GET", "jobs"))
    with pytest.raises(TryAgain, match="batch.googleapis.com: no answer"):
        google_batch.observe(JOB)


@pytest.mark.parametrize(
    "code, message, permanent",
    [(code, "any", True) for code in (3, 5, 7, 9, 12, 16)]
    + [(code, "any", False) for code in (0, 1, 2, 4, 8, 10, 13, 14)]
    + [(8, "Quota 'TPUS' has been exceeded", True), (8, RATE, False), (14, "no quota server", False)],
)
def test_errors_that_come_again(code, message, permanent):
    """By their RPC codes (google.rpc.Code); 8 is RESOURCE_EXHAUSTED."""
    assert google_api.is_permanent(code, message) is permanent


@pytest.mark.parametrize("address, credentials", [("http://a:1", False), ("https://x.example", True), ("", True)])
def test_credentials_go_to_google_and_to_https_alone(monkeypatch, address, credentials):
    asked = []

    def session(with_credentials):
        def request(method, url, **_):
            asked.append((with_credentials, url))
            return SimpleNamespace(ok=True, json=dict)

        return SimpleNamespace(request=request)

    monkeypatch.setattr(google_api, "_http_session", session)
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_BATCH", address)
    google_batch.observe(JOB)
    host = address or "https://batch.googleapis.com"
    assert asked == [(credentials, f"{host}/v1/projects/my-project/locations/us-central1/jobs")]
