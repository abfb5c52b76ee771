"""A finished comparison in; its page, its tables and its figures out.

Everything is made from `comparison.json` alone, so that it can be made again at any time.
"""

from deltatune.comparison.reporting.reports import write_reports

__all__ = ["write_reports"]
