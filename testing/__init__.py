"""Faults, request ledgers, testbeds and fakes for tests, benchmarks and users' own tests."""
