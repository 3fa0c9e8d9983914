"""``report.html``: a page beside the results that tells how a batch went.

`history` keeps how fast it was over time, `gather` makes one value of all that a directory holds, and `page` makes the
page of that value.
"""
