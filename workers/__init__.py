"""The models: families, the step loop, replicas, the profiler, emulated workers."""
