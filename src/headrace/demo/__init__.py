"""The demo: a year of flights through workers that are killed on the way, and the sums compared with the file.

`flights.py` is the app, as a user would write it; the rest is the theatre around it.
"""
