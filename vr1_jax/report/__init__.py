"""A run as one HTML file: its numbers, its answers, its frames. Nothing is loaded from anywhere else."""

from vr1_jax.report.run_files import ReportError
from vr1_jax.report.write import Written, write_report

__all__ = ["ReportError", "Written", "write_report"]
