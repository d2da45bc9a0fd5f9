"""One HTML page of a run: ``dgl-dmns report RUN``."""

from dgl_dmns.report.page import write_report
from dgl_dmns.report.run import Run, save_run

__all__ = ["Run", "save_run", "write_report"]
