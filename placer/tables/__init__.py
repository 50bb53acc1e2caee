"""Token tables (Speculative MoE, arXiv 2503.04398): where a token's experts are, before it runs.

Most of a token's routing follows from the token itself, so that counting it ahead tells the
scheduler which GPU should own a request (data-parallel attention), or a token at a layer
(tensor-parallel attention); and from the tokens before it, which experts to fetch. A wrong guess
costs ordinary traffic, never a wrong answer.

vocabulary.py says which row belongs to a token. counts.py and contexts.py count experts by token
and by up to four tokens, in counts that add up; devices.py and experts.py turn them into what is
looked up, small enough to stand beside an engine: two bytes a token and layer for the GPU and how
sure that is, top-k + 1 bytes for the experts. made.py holds all of it together, with the plan, the
model and the vocabulary that it is for.
"""

from placer.tables.contexts import context_table
from placer.tables.counts import TokenTable, token_table
from placer.tables.devices import CERTAIN, DeviceTables, device_tables
from placer.tables.made import Counts, Origin, Tables, counted, keyed_by, tables_of
from placer.tables.rates import local_activation_rate, local_by_layer
from placer.tables.vocabulary import Vocabulary, token_identity

__all__ = [
    "CERTAIN", "Counts", "DeviceTables", "Origin", "Tables", "TokenTable", "Vocabulary",
    "context_table", "counted", "device_tables", "keyed_by", "local_activation_rate",
    "local_by_layer", "tables_of", "token_identity", "token_table",
]  # fmt: skip
