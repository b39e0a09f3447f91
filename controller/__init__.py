"""The controller: observes the load balancer, forecasts demand and makes plans. Time and randomness are arguments."""
