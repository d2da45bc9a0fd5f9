"""What a DGL user runs (protocol B), with every sampler: ``python -m benchmarks.dropin``."""

__all__: list[str] = []
