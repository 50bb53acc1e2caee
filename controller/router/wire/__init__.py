"""HTTP/1.1, as far as a front needs it: strict towards clients, wary of engines."""
