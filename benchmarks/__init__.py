"""Measurements that take hours: run by hand, never by the tests, and written down under docs/benchmarks/."""
