"""Programs for the tests of `turns.py`, which run in processes of their own."""

from pathlib import Path

from turns import Program


def noting(name: str, file: str) -> Program:
    def run(count: int) -> dict:
        with Path(file).open("a") as notes:
            notes.write(name * count)
        return {"noted": count}

    print("what a library prints is no answer")
    return Program(run, {"name": name})


def broken() -> Program:
    raise ValueError("no compiler here")
