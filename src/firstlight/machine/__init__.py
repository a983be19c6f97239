"""Where it runs: device, precision, threads, memory, random streams, clock, and compiled kernels."""
