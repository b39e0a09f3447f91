"""The HTTP API: routes, request bodies, responses, authentication, jobs and the web page."""
