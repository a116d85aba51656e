"""Archives: many old series through the daemon's own parts, without a daemon.

One series is one function, `stages.perform`: durable, repeatable, the same wherever it runs. Whatever hands it out is thin: processes of
this computer (`processes.py`), or Dask (`on_dask.py`).
"""
