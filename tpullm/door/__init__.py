"""The Python door, for a notebook: `tpullm.Run` makes the five steps, `tpullm.load` uses a trained model.

`steps.py` starts the verbs of the command line, `trained_model.py` is a model in this process, and `results.py` has
what both return, with the pictures for a notebook.
"""
