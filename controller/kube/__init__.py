"""The Kubernetes operator: fleets as objects, over the gRPC API; docs/kubernetes.md."""
