"""The engine model of simulations/ beside real engines: what is predicted, and what is measured."""
