"""Doing: the control plane of a fleet. Imports placer, which never imports it; docs/controller.md."""
