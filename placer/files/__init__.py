"""The only door between values and the disk.

npz.py reads arrays without trusting them, atomic.py writes whole files or none, routing.py knows
traces and profiles, specs.py models and topologies, plans.py plans.
"""
