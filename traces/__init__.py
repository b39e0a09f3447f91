"""Traces: generation and loading of trace files, the replay client and its report.

trace          a trace and its transforms: rate, speed, duration, resampled arrivals
rate_curve     a demand over time, and arrivals sampled from it
loader         reads four formats of trace files
prompts        synthetic prompts of users who edit and repeat their prompts
resemblance    similarity of the prompts of a log to earlier ones
generate       generates normal.csv and bursty.csv from their recipes
replay         the open-loop client
outcome        the outcome of one request, and the CSV file of outcomes
figures        the metrics of a replay, in total and over time
plots, report  report.json, plots and one self-contained page
"""
