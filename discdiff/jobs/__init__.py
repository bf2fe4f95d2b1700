"""Jobs over many rows, on one process or many: Parquet shards out, restartable, independent of the number of ranks."""

from discdiff.jobs.generation import run_job
from discdiff.jobs.likelihood import job_estimate, run_likelihood_job
from discdiff.jobs.shards import read_job

__all__ = ["job_estimate", "read_job", "run_job", "run_likelihood_job"]
