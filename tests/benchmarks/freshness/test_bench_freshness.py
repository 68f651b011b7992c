"""The benchmark of records on a small model."""


def test_a_model_is_fresh_until_it_changes(benchmark_module, tmp_path):
    bench = benchmark_module("freshness.bench_freshness")
    catalog, pipeline, parameters = bench.make_model(tmp_path, 0.02)
    arguments = (catalog, pipeline, parameters, bench.ENVIRONMENT)
    assert bench.by_existence(catalog, pipeline) == 0
    assert bench.by_records(*arguments) == set()
    (tmp_path / "model/model-0.safetensors").write_bytes(b"other")
    assert bench.by_existence(catalog, pipeline) == 0
    assert bench.by_records(*arguments) == {"report"}
