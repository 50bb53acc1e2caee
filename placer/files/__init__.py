"""The only door between values and the disk.

npz.py reads arrays and documents.py JSON and YAML without trusting them, atomic.py opens files and
writes them whole or not at all; routing.py knows traces and profiles, specs.py models and
topologies, plans.py plans.
"""
