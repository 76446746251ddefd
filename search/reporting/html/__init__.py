"""`report.html` with its figures and tables: what a run found, for those who were not there."""

PAGE = "report.html"
