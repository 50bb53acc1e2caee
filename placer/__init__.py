"""placer: where a Mixture-of-Experts model's experts should live.

Every vLLM worker imports this package, so it pulls in nothing: import the modules you need.
docs/ARCHITECTURE.md says which is which.
"""
