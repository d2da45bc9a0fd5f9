"""Benchmarks of the package; each subpackage is one command, ``python -m benchmarks.<name>``."""

__all__: list[str] = []
