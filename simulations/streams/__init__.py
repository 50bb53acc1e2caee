"""Streams of real requests through the scheduler that ships, judged on routing that nothing was
made from: activations at home, the seconds of a step, and engines that decode side by side."""
