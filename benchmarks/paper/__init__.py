"""The paper's experiments (DMNS, WWW 2024) on this package: ``python -m benchmarks.paper``."""

__all__: list[str] = []
