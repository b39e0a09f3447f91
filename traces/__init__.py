"""Traces: what users replay, how it is made and read, the replay client and its report.

trace          a trace and its transforms: rate, speed, duration, arrivals drawn anew
rate_curve     a demand over time, and arrivals drawn from it
loader         four forms of trace files
prompts        the prompts of users who try, change one word and try again
resemblance    how much the prompts of a log resemble earlier ones
generate       normal.csv and bursty.csv from the recipes beside them
replay         the open-loop client
outcome        what became of one request, and the file that keeps it
figures        the figures of a replay, in total and over time
plots, report  report.json, plots and one self-contained page
"""
