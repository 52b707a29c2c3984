"""Pictures for reports, as SVG text. Knows nothing of adapters."""

from adapterhub.reports.charts import bar_chart, histogram, line_chart

__all__ = ["bar_chart", "histogram", "line_chart"]
