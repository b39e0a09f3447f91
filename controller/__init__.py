"""Observe, forecast, decide. Everything but the deployment is pure: time and randomness come in as arguments."""
