"""The requests of a batch: what is sent for a row, and what a reply is worth.

* `work_item`: a row in the queue, and how its next attempt differs from the first one.
* `tasks`, `embedding`: make the requests (`Generate`, `Chat`, `Embed`).
* `validation`: turns replies and errors into outcomes, and chooses the repair after a bad answer.
* `preflight`: checks server and model before the first row, and fixes what all requests of a run have in common.
"""
