"""The HTTP endpoints: routing, the fields of requests, and one handler for each endpoint."""
