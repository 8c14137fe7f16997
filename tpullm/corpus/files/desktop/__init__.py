"""Files of people's desktops → documents: office, PDF, tables, mail, notebooks, subtitles, chats.

reading.py: a file in a child with limits, in batches. Each other module reads formats of one sort: a function for each
kind, which gives a `Raw` for each document, and None where time may have passed.
"""
