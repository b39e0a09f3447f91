"""The models: families, batching replicas, the profiler, emulated workers."""
