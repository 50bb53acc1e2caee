"""Tokens 7 and 9 in a model of 2 layers x 4 experts on 2 GPUs."""

import numpy as np

from tests.builders import a_placement, a_trace

# Token 7 twice, token 9 once; GPU 0 holds experts 0 and 1 in both layers.
ROUTING = [[[0], [2]], [[1], [2]], [[3], [1]]]
TRACE = a_trace(ROUTING, token_ids=np.array([7, 7, 9]))
LINEAR = a_placement([[0, 1, 2, 3]] * 2)
