"""The Python door, for a notebook: `tpullm.Run` makes the five steps, `tpullm.load` uses a trained model.

`run.py` starts the verbs of the command line, `model.py` is a model in this process, `shown.py` what a notebook shows.
"""
