"""What the load balancers of a service share in Redis: presence, books, jobs, images, quotas, controls, the lease."""
