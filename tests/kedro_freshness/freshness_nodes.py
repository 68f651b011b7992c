"""Node functions, in a module so that other processes can import them."""

from __future__ import annotations

from kedro_freshness import unaffected_by


def clean(raw, limit):
    return sorted(raw)[:limit]


def train(cleaned, training):
    return {"rows": cleaned, **training}, {"count": len(cleaned)}


def report(model):
    return f"model of {model}"


def join(*parts):
    return " ".join(map(str, parts))


def use(handle):
    return str(handle())


def as_list(*parts):
    return list(parts)


def constant():
    return [3, 1, 2]


def keep_nothing(value):
    assert value is not None


def chunks(raw):
    for value in raw:
        yield f"{value}\n"


def partitions(raw):
    return {f"part{value}": str(value) for value in raw}


def joined_partitions(parts):
    return sorted(load() for load in parts.values())


@unaffected_by("cache", "params:options", but=("params:options.seed",))
def with_options(raw, cache, options):
    return [raw, options["seed"]]
