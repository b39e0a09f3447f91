"""Prometheus and Grafana: scrape configuration, rules, dashboards as code, and the commands that write their files."""
