"""A run as one HTML file: its numbers, its answers, its frames. Nothing is loaded from anywhere else."""

from vr1_jax.errors import UserError
from vr1_jax.tools.report.write import Written, write_report

__all__ = ["UserError", "Written", "write_report"]
