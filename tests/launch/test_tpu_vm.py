"""TPU slices by Google's own client and a fake of the service: the requests."""

from urllib.parse import parse_qs, urlsplit

from tests.launch.conftest import make_job
from tpullm.launch import google_api, tpu_vm


def test_what_is_sent_is_what_a_dry_run_shows(tpu, tmp_path):
    job = make_job(tmp_path / "run", name="mine", slices=2, service_account="a@b.iam.gserviceaccount.com")
    (request,) = tpu_vm.requests(job, 3)
    google_api.create(request)
    shown = request.rest()
    (sent,) = tpu.requests
    address = urlsplit(shown["url"])
    assert (sent["path"], sent["body"]) == (address.path, shown["body"])
    assert sent["query"] == {key: values[0] for key, values in parse_qs(address.query).items()}
    assert sent["query"]["queuedResourceId"] == "mine-3"


def test_a_reservation_is_of_the_project_unless_its_name_says_another(tmp_path):
    theirs = "projects/other/locations/us-west4-a/reservations/theirs"
    for name, full in (("mine", "projects/my-project/locations/us-west4-a/reservations/mine"), (theirs, theirs)):
        (request,) = tpu_vm.requests(make_job(tmp_path, provisioning="reserved", reservation=name), 1)
        assert request.body["reservationName"] == full
