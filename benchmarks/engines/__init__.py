"""How near each network runs to the machine's limit and to its fastest peer: `python -m benchmarks.engines`."""
