"""``python -m dgl_dmns``: the same as ``dgl-dmns``."""

from __future__ import annotations

from dgl_dmns.cli.parser import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
