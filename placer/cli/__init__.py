"""The command line: main.py, and one file a verb. Reads and writes files, prints, decides nothing."""
