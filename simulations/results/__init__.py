"""One page of all results, made from scratch: papers' tables, scenarios, stories of faults.

Every table and every picture says the command that makes it alone, and whether its figures are
predicted, calibrated or measured.
"""
