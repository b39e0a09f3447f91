"""Model execution: families, the step loop, replicas, the profiler, emulated workers."""
