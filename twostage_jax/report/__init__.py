"""What a study found: tables, figures, and a report (`write_report`)."""

from twostage_jax.report.write import write_report

__all__ = ["write_report"]
