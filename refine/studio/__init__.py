"""The studio: a local page on which a person changes images with a robust classifier, live.

tabs.py says what each tab computes, in the very functions of the commands; runs.py computes it, one run at a time;
server.py speaks with the page; saving.py writes what can be repeated.
"""
