"""Prometheus and Grafana: what to scrape, rules, dashboards as code, and the commands that make their files."""
