"""Where the stages of a run are executed: in this process, or on a Dask cluster."""

from gps.extras import needed_by

with needed_by("gps.parallel"):
    from gps.parallel.executors import Dask, Executor, Serial, make_executor

__all__ = ["Dask", "Executor", "Serial", "make_executor"]
