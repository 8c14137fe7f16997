"""Gives the rows of a training to Weights & Biases or MLflow: a process of its own, which `trackers.py` starts.

Lines of JSON come in: what to do (`id`, `name`, `config`, ...), then the rows, then `null` if the training has closed
the log. What can't be done is a line on stderr; all that the library prints goes nowhere. It imports nothing of tpullm.
"""

import json
import os
import re
import threading
import time

SECONDS_WITHOUT_PARENT = 60.0  # to end in, when the training was killed
PROJECT = "tpullm"  # unless the library's variables name another one


class WandbRun:
    """A run of Weights & Biases. It refuses steps that are smaller than the last, so the step is a field of its own."""

    def __init__(self, order: dict):
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(project=project, id=order["id"], name=order["name"], dir=order["folder"], resume="allow")
        self._run.config.update(order["config"], allow_val_change=True)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, row: dict) -> None:
        """Log a row."""
        self._run.log(row)

    def close(self, whole: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if whole else 1)


class MlflowRun:
    """A run of MLflow. Its server chooses the id of a run, so ours is a tag. Of a repeated step both values stay."""

    def __init__(self, order: dict):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.tpullm_id = '{order['id']}'", max_results=1)
        tags = {"tpullm_id": order["id"]}
        run = found[0] if found else self._client.create_run(experiment, run_name=order["name"], tags=tags)
        self._id = run.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        # A parameter of a run can't be changed: of a resumed one, the new ones are added.
        new = [Param(key, str(value)) for key, value in order["config"].items() if key not in run.data.params]
        self._client.log_batch(self._id, params=new)

    def write(self, row: dict) -> None:
        """Log a row."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # Names of sources may have characters that MLflow refuses.
        metrics = [Metric(re.sub(r"[^/\w.\- :]", "_", key), value, now, row["step"]) for key, value in row.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, whole: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FINISHED" if whole else "KILLED")


RUNS = {"wandb": WandbRun, "mlflow": MlflowRun}


def main() -> None:
    """See above. What fails is tried again with the next row: a server may come back."""
    lines, told = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(2), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):  # a library that asks for a key would read rows
        os.dup2(nowhere, standard)
    order = json.loads(lines.readline())
    threading.Thread(target=_end_without, args=(order["parent"],), daemon=True).start()
    run, row = None, {}
    while row is not None:
        try:
            run = run or RUNS[order["tracker"]](order)
            if row:
                run.write(row)
        except Exception as error:
            told.write(f"{described(error, os.environ)}\n")
            told.flush()
        line = lines.readline()
        row = json.loads(line) if line.endswith("\n") else None
    if run:
        run.close(whole=line == "null\n")


def described(error: Exception, environment: dict) -> str:
    """One line about an error, without passwords and keys."""
    text = re.sub(r"//[^/\s]*@", "//", f"{type(error).__name__}: {error}".splitlines()[0])
    for name, value in environment.items():
        if value and re.search("KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "***")
    return text[:300]


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(SECONDS_WITHOUT_PARENT)
    os._exit(1)


if __name__ == "__main__":
    main()
