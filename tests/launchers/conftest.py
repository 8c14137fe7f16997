"""What the tests of launches share: jobs, a quick pace, a bucket, and clients that talk to a fake."""

import sys

import pytest

from tests import bucket
from tests.conftest import TINY
from tpullm.launchers import google, job, watch
from tpullm.launchers.settings import LaunchConfig

QUICK = watch.Pace(poll=0.1, first_wait=0.1, longest_wait=1.0)
CLOUD = {"project": "my-project", "zone": "us-central1-a"}


def job_of(target, verb, run="gs://my-bucket/tiny", arguments=(), **config):
    """A job of the tiny recipe."""
    command = [verb, "--config", str(TINY), "--run", run, *arguments]
    return job.make(target, LaunchConfig(**CLOUD | config), command)


@pytest.fixture
def address(monkeypatch):
    """Has an API's client talk to a fake, `address("BATCH", fake)`."""

    def set_address(service, fake):
        monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service}", fake.endpoint)

    google._client.cache_clear()
    yield set_address
    google._client.cache_clear()


@pytest.fixture(scope="module")
def storage():
    """A server of `gs://`."""
    with bucket.emulator() as server:
        yield server


@pytest.fixture
def machine(storage):
    """The variables that all machines have: where the bucket is. Set-up by pip is another test's."""
    return {"STORAGE_EMULATOR_HOST": storage.address}


PYTHON = {"python": sys.executable}
