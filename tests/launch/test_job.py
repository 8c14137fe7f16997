"""A job: its name, its inputs, its specification; and settings that no target can have."""

import contextlib
import dataclasses
import importlib

import pytest

from tests.conftest import TINY
from tests.launch.conftest import job_of, make_job
from tpullm.cli import launch
from tpullm.launch import job, show
from tpullm.launch.job import LaunchConfig
from tpullm.system.cluster.place import Place
from tpullm.system.errors import UserError

FITS = "a" + "-" * 46 + "z"  # 48 characters


@pytest.mark.parametrize("name", ["1a", "-a", "a-", "A", "a_b", "a.b", FITS + "z"])
def test_a_name_that_google_refuses(name):
    with pytest.raises(UserError, match="can't name resources"):
        make_job("gs://b/run", name=name)
    for good in ("a", "a-1", FITS):
        assert make_job("gs://b/run", name=good).name == good


def test_each_run_has_its_hash_each_specification_its_path_and_machines_the_extras():
    assert make_job("gs://b/run").extras() == "tpu,gcp"
    command = ["pretrain", "--config", str(TINY), "--trackers=[mlflow,wandb]"]
    assert make_job("gs://b/run", *command).extras() == "tpu,gcp,mlflow,wandb"
    # The run's hash marks resources; the specification's hash is in its path, so none is overwritten.
    one, again, other = make_job("gs://b/one"), make_job("gs://b/one/"), make_job("gs://b/other")
    assert one.run_hash == again.run_hash != other.run_hash
    changed = make_job("gs://b/one", environment={"A": "1"})
    assert changed.spec_path != one.spec_path and changed.run_hash == one.run_hash
    assert one.spec_path.startswith("gs://b/one/launch/tiny-pretrain/jobs/")
    assert one.labels(3) == {"tpullm": "tiny-pretrain", "tpullm-run": one.run_hash, "tpullm-attempt": "3"}
    pairs = [("A", "1"), ("B", "2")]
    in_another_order = [make_job("gs://b/one", environment=dict(each)) for each in (pairs, pairs[::-1])]
    assert in_another_order[0].spec_path == in_another_order[1].spec_path
    source = "[{name: a, kind: medicine, path: hpo, licence: l}]"
    work = job_of("batch", "collect", arguments=["--corpus.sources", source])
    job.check_cloud(work)
    assert "domains" in work.extras().split(",")


@pytest.mark.parametrize("recipe, name", [("Tiny", "tiny"), ("125m", "tpullm-125m"), ("é_x", "x")])
def test_the_default_name_is_made_of_the_recipes_name(recipe, name):
    command = ["pretrain", "--config", str(TINY), "--run", "gs://b/run", "--name", recipe]
    assert job.make("tpu-vm", LaunchConfig(), command).name == f"{name}-pretrain"


def test_the_laws_of_a_recipe_are_an_input_of_collect_and_of_tuning():
    for verb in ("run", "collect", "finetune"):
        command = [verb, "law-ja", "--run", "gs://b/run"]
        with pytest.raises(UserError, match="^corpus.sources: my_laws is on this machine; copy it to gs://"):
            job.check_cloud(job.make("batch", LaunchConfig(), command))
        laws = job.make("batch", LaunchConfig(), [*command, "--corpus.sources.law.path=gs://b/laws"])
        job.check_cloud(laws)


def job_with(key: str, path: str, verb: str) -> job.Job:
    words = {
        "corpus.sources": ["--corpus.sources", f"[{{name: a, kind: jsonl, path: {path}, licence: l, language: en}}]"],
        "finetune.talk.conversations": ["--finetune.talk.conversations", f"[{path}]"],
        "base": [],
    }
    arguments = words.get(key, [f"--{key}", path])
    work = job_of("batch", verb, arguments=arguments, volumes={"gs://b/f": "/mnt/disks/f"})
    if key == "base":  # a recipe with a base has no model of its own, as the tiny one has
        return dataclasses.replace(work, recipe=dataclasses.replace(work.recipe, base=path))
    return work


READS = {
    "text": ("run", "collect"),
    "corpus.sources": ("run", "collect"),
    "base": ("run", "pretrain", "finetune"),
    "finetune.talk.conversations": ("run", "finetune"),
    "finetune.talk.chat_template": ("run", "finetune"),
}


@pytest.mark.parametrize("key", READS)
def test_an_input_on_this_machine_is_refused_by_the_verbs_that_read_it(key):
    for verb in ("run", "collect", "tokenize", "pretrain", "finetune", "evaluate"):
        refused = contextlib.nullcontext()
        if verb in READS[key]:
            refused = pytest.raises(UserError, match=f"^{key}: /data/a is on this machine; copy it to gs://")
        with refused:
            job.check_cloud(job_with(key, "/data/a", verb))


@pytest.mark.parametrize(
    "key, path, is_seen",
    [
        ("text", "gs://b/a", True),
        ("text", "/mnt/disks/f/a", True),
        ("text", "/mnt/disks/fa", False),
        ("corpus.sources", "https://example.org/a", True),
        ("base", "pypi:tiny==1.0", True),
        ("finetune.talk.conversations", "tenki", True),
        ("finetune.talk.conversations", "licences", True),
    ],
)
def test_an_input_elsewhere_or_built_in_is_accepted(key, path, is_seen):
    with contextlib.nullcontext() if is_seen else pytest.raises(UserError, match=f"^{key}: {path} is on this machine"):
        job.check_cloud(job_with(key, path, "run"))


NARROW = ["devstorage.read_write", "logging.write", "monitoring.write"]


@pytest.mark.parametrize(
    "target, config, scopes",
    [
        ("tpu-vm", {"accelerator": "v5litepod-4"}, NARROW),
        ("batch", {"machine": "n2-standard-8"}, ["cloud-platform"]),  # its API has no other
    ],
)
@pytest.mark.parametrize("account", ["", "trainer@p.iam.gserviceaccount.com"])
def test_machines_have_the_least_scopes_and_a_line_says_so(target, config, scopes, account):
    work = job_of(target, "collect" if target == "batch" else "pretrain", service_account=account, **config)
    request = importlib.import_module(f"tpullm.launch.{launch.CLOUD[target]}").requests(work, 1)
    assert all(f"https://www.googleapis.com/auth/{scope}" in str(request) for scope in scopes)
    assert str(request).count("googleapis.com/auth/") == len(scopes)
    who, _ = show.terms(work)
    assert who.endswith(f", with the scopes {', '.join(scopes)}.")
    default = "the project's default service account, which may change much more than the bucket"
    assert who.startswith(f"Machines run as {account or default}")


def test_the_most_that_an_attempt_can_cost_is_said():
    _, cost = show.terms(job_of("tpu-vm", "pretrain", accelerator="v5litepod-4", slices=2, max_hours=10))
    assert cost.startswith("A machine ends after 10 hours at the latest (max_hours)")
    assert "at most 96.00 $ until then (9.60 $/h" in cost


def test_networks_by_the_names_of_compute_engine():
    paths = lambda **names: LaunchConfig(zone="us-west4-a", **names).network_paths  # noqa: E731
    network, subnetwork = {"network": "global/networks/n"}, {"subnetwork": "regions/us-west4/subnetworks/s"}
    assert (paths(), paths(network="n"), paths(subnetwork="s")) == ({}, network, subnetwork)
    assert paths(network="n", subnetwork="s") == network | subnetwork


def test_every_machine_of_every_slice_is_a_host():
    assert job_of("tpu-vm", "pretrain", accelerator="v5litepod-16", slices=3, nodes=7).hosts == 12
    assert job_of("batch", "pretrain", machine="a3-highgpu-8g", slices=3, nodes=7).hosts == 7


GPUS = {"machine": "a3-highgpu-8g", "nodes": 2}
STAGE = {"machine": "n2-standard-8", "nodes": 8}
ONLY_SPOT = {"machine": "a3-ultragpu-8g", "provisioning": "on_demand"}
THREE = {"arguments": ["--mesh.fsdp", "3"]}
REFUSED = [
    ("batch", "pretrain", {"machine": "a3-highgpu-16g"}, "there is no a3-highgpu-16g; there are a3-highgpu-1g"),
    ("batch", "collect", {"nodes": 8}, "machine: is needed to launch on batch"),
    ("batch", "collect", {"machine": "n2-standard-9"}, "there is no n2-standard-9; the nearest are n2-standard-"),
    ("batch", "pretrain", ONLY_SPOT, "use spot or reserved"),
    ("batch", "pretrain", {"accelerator": "v5litepod-4"}, "v5litepod-4 is a TPU, and Google Batch has none; launch it"),
    (
        "batch",
        "pretrain",
        {"machine": "ct6e-standard-4t"},
        "has TPUs; give its slice: launch gke --accelerator v6e:SHAPE",
    ),
    ("batch", "collect", {"machine": "g2-standard-4"}, "machine: collect needs no GPU"),
    ("batch", "evaluate", STAGE, "nodes: 8 are too many, one machine does all of evaluate"),
    ("batch", "collect", STAGE | {"volumes": {"b": "/mnt/disks/b"}}, "volumes: b: /mnt/disks/b is not gs://"),
    ("batch", "collect", STAGE | {"volumes": {"gs://b": "/data"}}, "volumes: gs://b: /data is not"),
    ("batch", "pretrain", GPUS | THREE, r"mesh.* 16 device.*machine: 2 x a3-highgpu-8g"),
]


@pytest.mark.parametrize("target, verb, config, says", REFUSED)
def test_what_cannot_be_launched_is_refused_in_one_line(target, verb, config, says):
    with pytest.raises(UserError, match=says) as error:
        importlib.import_module(f"tpullm.launch.{launch.CLOUD[target]}").check(job_of(target, verb, **config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, needed",
    [(["real"], True), (["quickstart"], False), (["quickstart", "--export.gguf=[q8_0]"], True)],
)
def test_a_machine_gets_the_package_for_gguf_files_if_it_reads_or_writes_one(words, needed):
    made = job.make("batch", LaunchConfig(), ["run", *words, "--run", "gs://b/run"])
    assert ("gguf" in made.extras().split(",")) == needed


def test_a_verb_is_told_its_place_or_its_engine():
    alone, second = Place(0, 1, "a test"), Place(1, 2, "a test", "first:1")
    assert job.verb_flags("pretrain", second) == [
        "--hosts.index=1",
        "--hosts.count=2",
        "--hosts.coordinator=first:1",
    ]
    assert job.verb_flags("evaluate", alone) == ["--hosts.index=0", "--hosts.count=1"]
    assert job.verb_flags("collect", second) == ["--engine=ray"] and job.verb_flags("collect", alone) == []
