"""The Kubernetes operator: fleets as objects, over the controller's gRPC API; docs/kubernetes.md."""
