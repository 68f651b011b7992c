"""Prepares the processes of a trial that are started and not forked."""

from benchmarks.faults import aimed, fake_gpus

fake_gpus.install()
aimed.install()
