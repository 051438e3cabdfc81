"""What the tests, the parity suite and the benchmarks share."""
