"""Kedro hooks: working directory, checks before and after a run, MLflow, a log line per stage."""
