"""``python -m dgl_dmns.report RUN``; the same as ``dgl-dmns report RUN``."""

from __future__ import annotations

import sys

from dgl_dmns.cli.parser import main

if __name__ == "__main__":
    raise SystemExit(main(["report", *sys.argv[1:]]))
